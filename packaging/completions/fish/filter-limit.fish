# fish completion for filter-limit; made by packaging/make_completions.py
complete -c filter-limit -w 'smtpd-filters run limit'
