//! An attachment on its way from the store to the server.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use super::sender::Sender;
use super::state::lock;
use crate::message::{Claimed, MessageId};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::attachment::Subject;
use crate::store::attachment::AttachmentReader;
use crate::store::{Store, StoreError};
use crate::upstream::upload::UploadFile;

/// Bodies of attachment messages are a few names.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// Uploads the file of a message, and returns the answer by which the message is judged.
///
/// If the store cannot read the file, the server is not to blame: the message is retried like one that failed alone. A
/// message purged meanwhile has lost its file, and its settle changes nothing.
pub(super) fn upload(sender: &Sender<'_>, message: &Claimed, answer_timeout: Duration) -> Result<Answer, SendFailure> {
    let replay = sender.replay;
    let kept = |status, text: String| Ok(Answer { text, ..Answer::of_status(status) });
    let content = message.request.body.decode(BODY_BYTES_MAX).map_err(|fault| fault.to_string());
    let subject = match content.and_then(|content| Subject::from_body(&content)) {
        Ok(subject) => subject,
        Err(fault) => return kept(400, format!("opik-offline: what the file belongs to can't be read: {fault}")),
    };
    let file = match replay.store.attachment(message.id) {
        Ok(Some(file)) => file,
        Ok(None) => return kept(404, "opik-offline: the message's file is not in the store".to_owned()),
        Err(failure) => return kept(500, format!("opik-offline: the file can't be read: {failure}")),
    };
    let may_send = || !replay.shutdown.is_requested() && sender.keeper.may_send();
    let failed: Mutex<Option<StoreError>> = Mutex::new(None);
    let open = |range: Range<u64>| -> Box<dyn io::Read + '_> {
        Box::new(Guarded { may_send: &may_send, failed: &failed, reader: reader(replay.store, message.id, range) })
    };
    let result = replay.upstream.upload(
        &sender.work.lane,
        &UploadFile {
            subject: &subject,
            headers: &message.request.headers,
            bytes: file.bytes,
            answer_timeout,
            open: &open,
            may_send: &may_send,
        },
    );
    match lock(&failed).take() {
        Some(failure) => kept(500, format!("opik-offline: the file can't be read: {failure}")),
        None => result,
    }
}

fn reader(store: &dyn Store, message: MessageId, range: Range<u64>) -> AttachmentReader<'_> {
    AttachmentReader::new(store, message, range)
}

/// Stops the upload once nothing may be sent: half an hour of it must not outlive the lease or keep the agent from
/// stopping.
struct Guarded<'a> {
    may_send: &'a dyn Fn() -> bool,
    failed: &'a Mutex<Option<StoreError>>,
    reader: AttachmentReader<'a>,
}

impl io::Read for Guarded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !(self.may_send)() {
            return Err(io::Error::other("the upload was stopped"));
        }
        self.reader.read(into).inspect_err(|_| *lock(self.failed) = self.reader.failure())
    }
}
