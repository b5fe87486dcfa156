# fish completion for filter-trace; made by packaging/make_completions.py
complete -c filter-trace -w 'smtpd-filters run trace'
