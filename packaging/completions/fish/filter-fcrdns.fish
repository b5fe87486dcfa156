# fish completion for filter-fcrdns; made by packaging/make_completions.py
complete -c filter-fcrdns -w 'smtpd-filters run fcrdns'
