# A message was moved out of Junk.  Moves into the trash, or back into Junk, teach nothing.
require ["copy", "environment", "imapsieve", "special-use", "variables", "vnd.dovecot.pipe"];

if environment :matches "imap.mailbox" "*" {
    set "mailbox" "${1}";
}
if environment :matches "imap.user" "*" {
    set "user" "${1}";
}
# The trash: by its special use, if Dovecot knows it, and by the common names.
if anyof (
    specialuse_exists "${mailbox}" "\\Trash",
    specialuse_exists "${mailbox}" "\\Junk",
    environment :is "imap.mailbox" ["Junk", "Trash", "Deleted Items", "Deleted Messages"]
) {
    stop;
}
pipe :copy "rspamd-learn" ["ham", "${user}"];
