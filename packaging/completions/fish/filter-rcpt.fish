# fish completion for filter-rcpt; made by packaging/make_completions.py
complete -c filter-rcpt -w 'smtpd-filters run rcpt'
