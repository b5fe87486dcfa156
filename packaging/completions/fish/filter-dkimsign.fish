# fish completion for filter-dkimsign; made by packaging/make_completions.py
complete -c filter-dkimsign -w 'smtpd-filters run dkimsign'
