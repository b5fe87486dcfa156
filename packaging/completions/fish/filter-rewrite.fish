# fish completion for filter-rewrite; made by packaging/make_completions.py
complete -c filter-rewrite -w 'smtpd-filters run rewrite'
