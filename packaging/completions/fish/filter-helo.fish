# fish completion for filter-helo; made by packaging/make_completions.py
complete -c filter-helo -w 'smtpd-filters run helo'
