# fish completion for filter-spamd; made by packaging/make_completions.py
complete -c filter-spamd -w 'smtpd-filters run spamd'
