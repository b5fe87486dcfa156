# fish completion for filter-dnsbl; made by packaging/make_completions.py
complete -c filter-dnsbl -w 'smtpd-filters run dnsbl'
