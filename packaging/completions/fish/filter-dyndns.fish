# fish completion for filter-dyndns; made by packaging/make_completions.py
complete -c filter-dyndns -w 'smtpd-filters run dyndns'
