# fish completion for filter-chain; made by packaging/make_completions.py
complete -c filter-chain -w 'smtpd-filters run chain'
