# A message has left Junk.  What goes on to the trash, or to Junk again, says nothing.
require ["copy", "environment", "imapsieve", "variables", "vnd.dovecot.pipe"];

if environment :is "imap.mailbox" ["Junk", "Trash", "Deleted Items", "Deleted Messages"] {
    stop;
}
if environment :matches "imap.user" "*" {
    set "user" "${1}";
}
pipe :copy "rspamd-learn" ["ham", "${user}"];
