# fish completion for filter-policy; made by packaging/make_completions.py
complete -c filter-policy -w 'smtpd-filters run policy'
