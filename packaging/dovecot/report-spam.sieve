# A message has got into Junk: what it is, and whose, goes to rspamd-learn.
require ["copy", "environment", "imapsieve", "variables", "vnd.dovecot.pipe"];

if environment :matches "imap.user" "*" {
    set "user" "${1}";
}
pipe :copy "rspamd-learn" ["spam", "${user}"];
