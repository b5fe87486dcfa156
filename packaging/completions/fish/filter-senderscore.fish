# fish completion for filter-senderscore; made by packaging/make_completions.py
complete -c filter-senderscore -w 'smtpd-filters run senderscore'
