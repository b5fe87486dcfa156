# fish completion for filter-supervise; made by packaging/make_completions.py
complete -c filter-supervise -w 'smtpd-filters run supervise'
