# fish completion for filter-content; made by packaging/make_completions.py
complete -c filter-content -w 'smtpd-filters run content'
