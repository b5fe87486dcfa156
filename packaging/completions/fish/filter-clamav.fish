# fish completion for filter-clamav; made by packaging/make_completions.py
complete -c filter-clamav -w 'smtpd-filters run clamav'
