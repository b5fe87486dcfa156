# fish completion for filter-rspamd; made by packaging/make_completions.py
complete -c filter-rspamd -w 'smtpd-filters run rspamd'
