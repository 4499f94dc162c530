//! An attachment on its way from the store to the server.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use super::lane::LaneWorker;
use super::lock;
use crate::message::{Claimed, MessageId};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::attachment::Subject;
use crate::store::attachment::AttachmentReader;
use crate::store::{Store, StoreError};
use crate::upstream::upload::UploadFile;

/// Bodies of attachment messages are a few names.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// Uploads the file of a message, and returns the answer that decides about it.
///
/// What keeps the store from giving the file out is no fault of the server's, and is tried again like an error of the
/// message's own. The file of a message that was purged meanwhile is gone with it, and so is whatever is settled.
pub(super) fn upload(
    worker: &LaneWorker<'_>,
    message: &Claimed,
    answer_timeout: Duration,
) -> Result<Answer, SendFailure> {
    let replay = worker.replay;
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
    let may_send = || !replay.shutdown.is_requested() && worker.keeper.may_send();
    let failed: Mutex<Option<StoreError>> = Mutex::new(None);
    let open = |range: Range<u64>| -> Box<dyn io::Read + '_> {
        Box::new(Guarded { may_send: &may_send, failed: &failed, reader: reader(replay.store, message.id, range) })
    };
    let result = replay.upstream.upload(
        &worker.work.lane,
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

/// Reads as long as it may be sent: an upload of half an hour must not outlive its lease or keep the agent from stopping.
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
