# fish completion for filter-mailfrom; made by packaging/make_completions.py
complete -c filter-mailfrom -w 'smtpd-filters run mailfrom'
