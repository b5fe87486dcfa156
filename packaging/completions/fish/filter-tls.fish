# fish completion for filter-tls; made by packaging/make_completions.py
complete -c filter-tls -w 'smtpd-filters run tls'
