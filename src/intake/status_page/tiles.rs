//! The cards at the top: the server, what waits, what was rejected, how fast it moves, when it is done.

use std::fmt::Write;

use super::badge::Badge;
use super::text::{ago, escaped, number, rate, since, size, words};
use crate::delivery::eta::{EtaState, in_words};
use crate::overview::{EtaOverview, Overview};

/// Returns all cards.
pub(super) fn tiles(overview: &Overview) -> String {
    let tiles = [
        server_tile(overview),
        waiting_tile(overview),
        rejected_tile(overview),
        rates_tile(overview),
        eta_tile(overview),
    ];
    format!(r#"<div class="tiles">{}</div>"#, tiles.concat())
}

fn tile(id: &str, name: &str, badge: Option<Badge>, big: &str, lines: &[String]) -> String {
    let mut html = format!(
        r#"<section aria-labelledby="{id}"><h2 id="{id}">{name}</h2><p class="big">{}{}</p>"#,
        badge.map_or(String::new(), Badge::html),
        escaped(big)
    );
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let _ = write!(html, "<p>{}</p>", escaped(line));
    }
    html.push_str("</section>");
    html
}

fn server_tile(overview: &Overview) -> String {
    let server = &overview.server;
    let (badge, word) = match server.connection {
        "available" => (Badge::Good, "Available"),
        "unavailable" => (Badge::Bad, "Unavailable"),
        _ => (Badge::Warn, "Not known yet"),
    };
    let since = server.since_ms.map_or(String::new(), |since_ms| {
        format!("for {}, since {} UTC", ago(overview.at_ms, since_ms), since(overview.at_ms, since_ms))
    });
    let hub = server.hub.as_ref().map_or(String::new(), |hub| {
        let url = hub.server_url.as_deref().unwrap_or("its server");
        let waiting = hub.waiting.map_or(String::new(), |waiting| format!(", {} there", words(waiting, "message")));
        format!("a hub; behind it {url} is {}{waiting}", hub.connection)
    });
    tile("t-server", "Opik server", Some(badge), word, &[since, hub, server.reason.clone().unwrap_or_default()])
}

fn waiting_tile(overview: &Overview) -> String {
    let (id, name, store) = ("t-waiting", "Messages waiting, safe on disk", &overview.store);
    if !store.usable {
        let mut lines = vec![store.reason.clone().unwrap_or_default()];
        if store.refused_while_unusable > 0 {
            lines.push(format!("{} refused since, to be sent again", words(store.refused_while_unusable, "write")));
        }
        return tile(id, name, Some(Badge::Bad), "Store unusable", &lines);
    }
    let mut lines = match store.oldest_accepted_at_ms {
        None => vec!["nothing has to be delivered".to_owned()],
        Some(oldest) => vec![
            format!("with {} in {}", words(store.items, "item"), size(store.body_bytes)),
            format!("the oldest for {}", ago(overview.at_ms, oldest)),
        ],
    };
    let moved = store.moved_stores.iter().map(|path| format!("more in {path}, which was moved away: move it back"));
    lines.extend(moved);
    tile(id, name, None, &number(store.waiting), &lines)
}

fn rejected_tile(overview: &Overview) -> String {
    let (id, name, store) = ("t-rejected", "Messages rejected", &overview.store);
    if !store.usable {
        return tile(id, name, Some(Badge::Bad), "Unknown", &[]);
    }
    let held = match held(overview) {
        0 => String::new(),
        held => format!("and {} held for the time in their ids", number(held)),
    };
    let (badge, line) = match store.rejected {
        0 => (None, "none is kept"),
        _ => (Some(Badge::Warn), "by the Opik server; kept until you decide"),
    };
    let badge = if held.is_empty() { badge } else { Some(Badge::Warn) };
    tile(id, name, badge, &number(store.rejected), &[line.to_owned(), held])
}

fn rates_tile(overview: &Overview) -> String {
    let (id, name) = ("t-rates", "Messages a second");
    let Some(rates) = &overview.rates else {
        return tile(id, name, None, "Measuring", &["needs a few seconds".to_owned()]);
    };
    let window = in_words(rates.window_seconds);
    let lines = [
        format!("{} forwarded at once", rate(rates.forwarded_per_second)),
        format!("{} stored", rate(rates.stored_per_second)),
        format!("{} delivered from the store", rate(rates.delivered_per_second)),
        format!("over the last {}", if window == "1m" { "minute" } else { &window }),
    ];
    let big = format!("{} in, {} out", rate(rates.in_per_second), rate(rates.out_per_second));
    tile(id, name, None, &big, &lines)
}

fn eta_tile(overview: &Overview) -> String {
    let (badge, big, line) = match &overview.eta {
        None => (Some(Badge::Bad), "Unknown".to_owned(), String::new()),
        Some(EtaOverview { eta, text }) => {
            let time = eta.time();
            match eta.state {
                EtaState::Nothing => (None, "Nothing to do".to_owned(), String::new()),
                EtaState::Growing => (Some(Badge::Warn), "Not in sight".to_owned(), text.clone()),
                EtaState::Stalled => (Some(Badge::Bad), "Stuck".to_owned(), text.clone()),
                EtaState::Moving => (None, time.unwrap_or_else(|| "Being measured".to_owned()), text.clone()),
                EtaState::Held => (Some(Badge::Warn), "Held".to_owned(), text.clone()),
                EtaState::ServerAway | EtaState::Idle => (None, "After the outage".to_owned(), text.clone()),
            }
        }
    };
    tile("t-eta", "Done in", badge, &big, &[line])
}

/// Returns how many messages the server refused for the time in their ids.
fn held(overview: &Overview) -> u64 {
    overview.store.groups.iter().filter(|group| group.status == "held").map(|group| group.messages).sum()
}
