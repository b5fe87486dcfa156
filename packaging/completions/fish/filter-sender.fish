# fish completion for filter-sender; made by packaging/make_completions.py
complete -c filter-sender -w 'smtpd-filters run sender'
