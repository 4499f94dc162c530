//! A protected write from its head to its answer: forwarded, or stored and acknowledged.
//!
//! ```text
//! received ─▶ prepared (decoded, ids, entities) ─▶ entity locks ─▶ admission ─┬─ send ─▶ verdict ─▶ the server's answer
//!                                                                             └─ register ─▶ committed ─▶ acknowledged
//! ```
//!
//! | step | file |
//! | --- | --- |
//! | the body is read into memory or spooled to disk | [`receive`], [`unkept`] |
//! | a create goes on as it is, if nothing makes its entities matter | [`unread`] |
//! | any other is decoded and inspected | [`prepare`]; in pieces, if it is large: [`pieces`], [`large`] |
//! | earlier writes about its entities are awaited, and its admission is decided | [`deliver`] |
//! | it is forwarded | [`send`] |
//! | it is committed | [`register`]; if that fails: [`not_stored`], and [`full`] if the store is full |
//! | it can't be kept and streams to the server | [`mod@stream_through`] |
//!
//! The crash between every two steps: before the answer or the commit nothing was acknowledged and the client still has
//! its data; after it, the server or the disk has it. Once the body is received, the work is [`Uncancelled`], so
//! a client that hangs up neither loses a write halfway nor frees its entity locks too early.

mod deliver;
mod full;
mod held;
mod large;
mod not_stored;
mod pieces;
mod prepare;
mod receive;
mod register;
mod send;
mod stream_through;
mod unkept;
mod unread;
mod write;

use bytes::Bytes;

use self::prepare::{WriteRequest, accept_whole};
use self::receive::{Processing, Received};
use self::stream_through::stream_through;
use self::unkept::PartialBody;
use super::exchange::Exchange;
use super::forward::{self, ClientAnswer};
use super::spool::Payload;
use super::uncancelled::Uncancelled;
use crate::memory::Grant;
use crate::protocol::answers::error;
use crate::protocol::routes::Protected;

pub(super) use self::not_stored::NotStored;

/// Accepts a protected write and returns its client's answer. `below` is its path and query below the API's base.
pub(super) async fn accept(mut exchange: Exchange, route: Protected, below: String) -> ClientAnswer {
    let received = match receive::receive(&mut exchange, route.message_type).await {
        Ok(received) => received,
        Err(reply) => return Box::pin(exchange.refuse(reply)).await,
    };
    let request = WriteRequest { exchange, route, below };
    // Boxed, what is rare: a future is as large as its largest branch, and is moved as a whole.
    let work = async move {
        match received {
            Received::InMemory(bytes, memory) => accept_in_memory(request, bytes, memory).await,
            Received::Spooled(payload) => Box::pin(large::accept(request, payload, None)).await,
            Received::Unkept(begun, why) => Box::pin(stream_through(request, begun, why)).await,
        }
    };
    // Not tied to the connection: see the module's head.
    Uncancelled::new(work).await.unwrap_or_else(|_| {
        forward::own_answer(error(500, "opik-offline failed to handle this request, which was not stored"))
    })
}

/// Accepts a write whose body is in memory as it was sent.
async fn accept_in_memory(request: WriteRequest, bytes: Bytes, memory: Grant) -> ClientAnswer {
    match unread::candidate(request, bytes, memory) {
        Ok(create) => unread::deliver(create).await,
        Err(other) => Box::pin(accept_measured(*other)).await,
    }
}

/// Accepts a write whose body is in memory, and read there.
async fn accept_measured((request, bytes, memory): (WriteRequest, Bytes, Grant)) -> ClientAnswer {
    let (shared, headers) = (&request.exchange.shared, &request.exchange.head.headers);
    match receive::measure(shared, request.route.message_type, headers, &bytes).await {
        Ok(Processing::Whole(content_bytes)) => accept_whole(request, bytes, content_bytes, memory).await,
        Ok(Processing::Divided) => Box::pin(large::accept(request, Payload::InMemory(bytes), Some(memory))).await,
        Ok(Processing::Unkept(why)) => {
            let begun = PartialBody { payload: Payload::InMemory(bytes), memory: Some(memory), is_whole: true };
            Box::pin(stream_through(request, begun, why)).await
        }
        Err(reply) => forward::own_answer(reply),
    }
}
