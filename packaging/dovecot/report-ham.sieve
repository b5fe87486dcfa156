# A message has left Junk.  What goes on to the trash, or to Junk again, says nothing.
require ["copy", "environment", "imapsieve", "special-use", "variables", "vnd.dovecot.pipe"];

if environment :matches "imap.mailbox" "*" {
    set "mailbox" "${1}";
}
if environment :matches "imap.user" "*" {
    set "user" "${1}";
}
# Whatever it is called, where Dovecot knows it (special_use), and by the names in use.
if anyof (
    specialuse_exists "${mailbox}" "\\Trash",
    specialuse_exists "${mailbox}" "\\Junk",
    environment :is "imap.mailbox" ["Junk", "Trash", "Deleted Items", "Deleted Messages"]
) {
    stop;
}
pipe :copy "rspamd-learn" ["ham", "${user}"];
