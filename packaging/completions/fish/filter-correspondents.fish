# fish completion for filter-correspondents; made by packaging/make_completions.py
complete -c filter-correspondents -w 'smtpd-filters run correspondents'
