//! Many registrations, one commit. (Filled in by the next commit.)
