# fish completion for filter-auth; made by packaging/make_completions.py
complete -c filter-auth -w 'smtpd-filters run auth'
