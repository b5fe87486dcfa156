# fish completion for filter-milter; made by packaging/make_completions.py
complete -c filter-milter -w 'smtpd-filters run milter'
