# A message was moved into Junk: pass its kind and its user to rspamd-learn.
require ["copy", "environment", "imapsieve", "variables", "vnd.dovecot.pipe"];

if environment :matches "imap.user" "*" {
    set "user" "${1}";
}
pipe :copy "rspamd-learn" ["spam", "${user}"];
