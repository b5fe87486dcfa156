# fish completion for filter-greylist; made by packaging/make_completions.py
complete -c filter-greylist -w 'smtpd-filters run greylist'
