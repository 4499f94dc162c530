//! Recognises the sender of a response: only Opik's own responses confirm or reject a write, or are final for a waiting
//! client.
//!
//! Everything between agent and server speaks HTTP too: sign-in pages, captive portals, ingress routers, gateways,
//! corporate proxies, the UI's web server if `--upstream` lacks `/api`. Their 200 is not a confirmation and their 404
//! not a rejection. [`recognise`] distinguishes them from Opik by the endpoint's known responses: status, content type,
//! schema.
//!
//! Sources: the OpenAPI file (success codes, `ErrorMessage`), and the server's code (`apps/opik-backend`):
//!
//! | Opik's response | origin |
//! | --- | --- |
//! | 201 with `Location`, 204, 200 of OTLP: no body | the resources; only upload-start has a response body |
//! | `{"code":N,"message":..,"details":..}` with status N | Dropwizard's `ErrorMessage`: every exception without an entity, Jersey's own 404, 405, 415, the size limit, the rate limit |
//! | `{"errors":["..."]}` | Opik's `ErrorMessage` (409, 404, 400) and bean validation (422) |
//! | `{"message":..,"healthy":bool}` with 200 or 500 | `is-alive/ping`, since its first version; the OpenAPI file has its type only |
//! | 501 without a body | the deletion of a span |
//! | 500 without a body | Jersey, if an error can't be encoded in the requested type (OTLP) |
//! | 403 `Access denied: Invalid API key` | the auth gate of Opik's own compose file |
//!
//! Ambiguous responses, and the decision:
//!
//! - **Success with a body where Opik sends none.** A later server may return the created ids, so an object with an
//!   `id` or `ids` and no sign of an error is a confirmation, and so is a 201, which no page has, with anything but
//!   HTML. Any other text is foreign: a stored message can be retried, one that was wrongly confirmed is lost.
//! - **Success without a body** is a confirmation with any 2xx status, except a 200 with a content type: responses of
//!   Opik without a body have no type either.
//! - **Dropwizard's 404** counts as Opik's although every Dropwizard application sends it: the ping must be Opik's at
//!   the same base URL before anything is replayed.
//! - **Rejections without a body** are foreign (Envoy's and Istio's 404), except 401 to 403: those concern the key, the
//!   client can correct it, and replay holds the lane for them regardless of the sender.
//! - **413** is believed from every front: it concerns the size of this request, retrying the same does not help, and
//!   the remedy, smaller requests, is safe. A single item that is too large becomes a dead letter.
//! - **A hub's own refusal** ([`super::hub::ANSWER_HEADER`]) is foreign, a 413 as well: Opik has not seen the request,
//!   and the hub takes it once it has room or its server is back. A loop (508) is not: no retry ends it.

use crate::message::MessageType;

use super::json::{JsonKind, NotJson, Scanner};

/// The endpoint of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET is-alive/ping`
    Ping,
    /// `GET is-alive/ver`
    Version,
    /// `POST v1/private/auth`
    Access,
    /// A protected write.
    Write(MessageType),
    /// `POST v1/private/attachment/upload-start`
    UploadStart,
    /// `PUT v1/private/attachment/upload`, and `POST v1/private/attachment/upload-complete`
    Upload,
    /// A read of JSON: one entity, a page, or a stream of lines.
    Read,
}

/// The parts of a response by which its sender is recognised.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen<'a> {
    /// The status.
    pub status: u16,
    /// `Content-Type`
    pub content_type: Option<&'a str>,
    /// `Location`
    pub location: Option<&'a str>,
    /// The body's beginning, decoded.
    pub body: &'a [u8],
    /// Whether the body is truncated here.
    pub is_cut: bool,
    /// Whether it is marked as a hub's own answer.
    pub is_hubs: bool,
}

/// The sender and meaning of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// Opik confirms the complete request.
    Confirmed,
    /// Opik confirms part of it: 207, or OTLP's partial success; the body has the details.
    Partial,
    /// Opik rejects it, or fails.
    Refused,
    /// Another sender than Opik.
    Foreign(Box<Foreign>),
}

impl Recognised {
    /// Returns the description of a foreign response.
    pub fn foreign(&self) -> Option<&Foreign> {
        match self {
            Self::Foreign(foreign) => Some(foreign),
            Self::Confirmed | Self::Partial | Self::Refused => None,
        }
    }
}

/// A foreign response, described for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The status.
    pub status: u16,
    /// The content type without its parameters.
    pub content_type: Option<String>,
    /// A page's title, or the first words of another payload, on one line without control characters.
    pub words: String,
    /// Target of a redirect.
    pub location: Option<String>,
    /// Whether it is a hub's own answer, not one that the hub passed on.
    pub is_hubs: bool,
}

/// Prefix of the text of a [`Foreign`], by which it is recognised in a lane's reason.
pub(crate) const NOT_OPIK: &str = "not Opik: ";

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NOT_OPIK}{}", self.status)?;
        if self.is_hubs {
            return write!(f, " of the hub itself \"{}\"", self.words);
        }
        if let Some(content_type) = &self.content_type {
            write!(f, " {content_type}")?;
        }
        match (&self.location, self.words.is_empty()) {
            (Some(location), _) => write!(f, ", redirects to {location}"),
            (None, false) => write!(f, " \"{}\"", self.words),
            (None, true) => write!(f, " without a body"),
        }
    }
}

impl Foreign {
    /// Returns the hint for operators.
    pub fn hint(&self) -> &'static str {
        if self.is_hubs {
            return hub_hint(self.status);
        }
        match (&self.location, self.status) {
            (Some(_), 300..=399) => {
                "no redirect is followed, it would carry the key along: set --upstream to where the API is (https?), \
                 or sign in where a proxy asks for it"
            }
            // The UI's web server serves a page for every path, and rejects POST.
            (_, 405) => LACKS_API,
            (_, 200..=299) if self.words.to_ascii_lowercase().contains("opik") => LACKS_API,
            (_, 401..=403 | 407) => {
                "a gate in front of the server wants to know who asks: check OPIK_API_KEY and the proxy"
            }
            (_, 500..=599) => {
                "a proxy in front of the server can't reach it, or the server fails: start the server, or check its log"
            }
            _ => {
                "a sign-in page, a proxy or a router answers in the server's place, or --upstream does not name the API, \
                 such as http://127.0.0.1:5173/api"
            }
        }
    }
}

/// Returns the hint for a hub's own refusal.
fn hub_hint(status: u16) -> &'static str {
    match status {
        401 => {
            "set the token that the hub requires (its OPIK_OFFLINE_INTAKE_TOKEN) here as OPIK_OFFLINE_HUB_TOKEN, or in a \
             file with --hub-token-file"
        }
        403 => "add the host name by which this agent reaches the hub to the hub's --allowed-hosts",
        413 => "raise max_body_size, max_inflated_size or max_attachment_size of the hub to those of this agent",
        _ => "`status` at the hub shows why; what is stored here is kept and sent again",
    }
}

const LACKS_API: &str =
    "this may be the UI's web server: --upstream needs the API's path, such as http://127.0.0.1:5173/api";

/// Prefix of the reason of a server that is available and not healthy.
pub(crate) const UNHEALTHY: &str = "the ping was answered with ";

/// Returns what to do about an answer of a server that can't do its work for now; `None` if the status says something
/// about the request.
pub(crate) fn unwell_hint(status: u16) -> Option<&'static str> {
    match status {
        408 | 425 | 429 => Some("the server takes no more requests for now: try again later"),
        500..=599 => Some("the server has a problem of its own: check its log and its databases"),
        _ => None,
    }
}

/// The result of a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Opik is available and healthy.
    There,
    /// A gate rejects the ping's own key, or requires one; with this error text. Queued messages have keys of their
    /// own, so this does not stop delivery.
    Unauthorised(String),
    /// Opik is available and not healthy; with the status and this error text.
    Unhealthy(u16, String),
    /// Not Opik.
    Foreign(Box<Foreign>),
}

impl Presence {
    /// Returns a description with a hint for operators; `None` if healthy.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::There => None,
            Self::Unauthorised(said) => Some(format!("its ping is not authorised: {said}")),
            Self::Unhealthy(_, said) => Some(format!("{UNHEALTHY}{said}")),
            Self::Foreign(foreign) => Some(format!("{foreign}; {}", foreign.hint())),
        }
    }

    /// Returns the same as a sentence about this URL, without the hint.
    pub fn sentence(&self, url: &str) -> String {
        match self {
            Self::There => format!("{url} answers its ping"),
            Self::Unauthorised(said) => format!("{url} does not authorise its ping: {said}"),
            Self::Unhealthy(_, said) => format!("{url} answers its ping with {said}"),
            Self::Foreign(foreign) => format!("{url} is {foreign}"),
        }
    }

    /// Returns the hint for operators; `None` if Opik is healthy.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::There => None,
            Self::Unauthorised(_) => Some("check OPIK_API_KEY and OPIK_WORKSPACE"),
            Self::Unhealthy(status, _) => Some(
                unwell_hint(*status)
                    .unwrap_or("check that --upstream is the URL of the API, such as http://127.0.0.1:5173/api"),
            ),
            Self::Foreign(foreign) => Some(foreign.hint()),
        }
    }
}

/// The status of a request that met an agent twice. Only agents answer with it, and it is final for every one of them.
const LOOP_DETECTED: u16 = 508;

/// Recognises the sender of a response.
pub(crate) fn recognise(endpoint: Endpoint, seen: &Seen<'_>) -> Recognised {
    // The usual response to writes, which can't have a body. A ping or a read is never answered with it.
    if seen.status == 204 && !matches!(endpoint, Endpoint::Ping | Endpoint::Version | Endpoint::UploadStart) {
        return Recognised::Confirmed;
    }
    let recognised = match seen.status {
        400.. if seen.is_hubs && seen.status != LOOP_DETECTED => None,
        _ if is_html(seen) && seen.status != 413 => None,
        200..=299 => success(endpoint, seen),
        413 => Some(Recognised::Refused),
        // Opik redirects none of our requests, but a response in its schema is its own.
        300..=599 => is_refusal(endpoint, seen).then_some(Recognised::Refused),
        _ => None,
    };
    recognised.unwrap_or_else(|| Recognised::Foreign(Box::new(foreign(seen))))
}

/// Interprets the response to a ping; `said` is its body.
pub(crate) fn presence(recognised: Recognised, status: u16, said: &str) -> Presence {
    match (recognised, status) {
        (Recognised::Confirmed | Recognised::Partial, _) => Presence::There,
        // A hub that refuses this agent takes no message of any key from it.
        (Recognised::Foreign(foreign), _) if foreign.is_hubs => Presence::Foreign(foreign),
        (Recognised::Foreign(foreign), 401 | 403) => Presence::Unauthorised(foreign.to_string()),
        (Recognised::Refused, 401 | 403) => Presence::Unauthorised(with_words(status, said)),
        (Recognised::Foreign(foreign), _) => Presence::Foreign(foreign),
        (Recognised::Refused, _) => Presence::Unhealthy(status, with_words(status, said)),
    }
}

fn with_words(status: u16, said: &str) -> String {
    let words = words(None, said.as_bytes());
    if words.is_empty() { status.to_string() } else { format!("{status}: {words}") }
}

fn success(endpoint: Endpoint, seen: &Seen<'_>) -> Option<Recognised> {
    if seen.status == 207 {
        // Not a plain confirmation in any case.
        return (first_byte(seen) == Some(b'{') || first_byte(seen) == Some(b'[')).then_some(Recognised::Partial);
    }
    // The success codes of the OpenAPI file. 203 means that an intermediary changed the response.
    if !matches!(seen.status, 200 | 201 | 202 | 204) {
        return None;
    }
    let is_empty = first_byte(seen).is_none();
    let confirmed = |yes: bool| yes.then_some(Recognised::Confirmed);
    match endpoint {
        // The OpenAPI file has only the type of a ping's response, and mocks generated from it (Prism) send no more.
        Endpoint::Ping if is_empty => confirmed(seen.status == 200 && is_json(seen)),
        Endpoint::Ping => {
            let members = ObjectMembers::of(seen)?;
            let is_healthy = match members.healthy {
                Some(healthy) => healthy,
                None => members.message.is_some_and(|message| message.eq_ignore_ascii_case("healthy server")),
            };
            confirmed(seen.status == 200 && is_healthy)
        }
        Endpoint::Version => confirmed(ObjectMembers::of(seen)?.has_version),
        Endpoint::Read => confirmed(match first_byte(seen) {
            None => true,
            Some(b'[') => true,
            // An entity of megabytes is truncated; an error is not that long.
            Some(b'{') => ObjectMembers::of_lines(seen).is_some_and(|members| !members.is_error()),
            Some(_) => false,
        }),
        Endpoint::UploadStart => confirmed(ObjectMembers::of(seen)?.has_upload_id),
        Endpoint::Write(MessageType::OtlpTraces) => otlp_success(seen),
        // Opik's 201 and 204 have no type; a mock that answers everything with 200 has one.
        Endpoint::Access | Endpoint::Upload | Endpoint::Write(_) if is_empty => {
            confirmed(seen.status != 200 || essence(seen.content_type).is_none())
        }
        Endpoint::Access | Endpoint::Upload | Endpoint::Write(_) => match ObjectMembers::of(seen) {
            Some(members) if members.is_error() => None,
            Some(members) => confirmed(members.names_entity || members.is_empty || seen.status == 201),
            // 201 is Opik's status for creates; no page has it.
            None => confirmed(seen.status == 201 && matches!(endpoint, Endpoint::Write(_))),
        },
    }
}

/// Parses an `ExportTraceServiceResponse`: empty, or with a `partial_success` that may be empty as well.
fn otlp_success(seen: &Seen<'_>) -> Option<Recognised> {
    if first_byte(seen).is_none() {
        return Some(Recognised::Confirmed);
    }
    if essence(seen.content_type).is_some_and(|essence| essence.eq_ignore_ascii_case("application/x-protobuf")) {
        // Field 1, a message; its fields are 1 (a number) and 2 (a text). Anything else is not such a response.
        let rest = seen.body.strip_prefix(&[0x0a])?;
        return match rest {
            [0] => Some(Recognised::Confirmed),
            [_, ..] => Some(Recognised::Partial),
            [] => None,
        };
    }
    match ObjectMembers::of(seen)? {
        members if members.is_error() => None,
        members if members.has_partial_success => Some(Recognised::Partial),
        members => (members.is_empty || members.has_empty_partial_success).then_some(Recognised::Confirmed),
    }
}

/// Returns whether a status from 400 on is Opik's own.
fn is_refusal(endpoint: Endpoint, seen: &Seen<'_>) -> bool {
    if first_byte(seen).is_none() {
        return match seen.status {
            401..=403 | 500 => true,
            501 => endpoint == Endpoint::Write(MessageType::DeleteSpan),
            _ => false,
        };
    }
    if matches!(seen.status, 401 | 403) && seen.body.starts_with(AUTH_GATE) {
        return true;
    }
    match ObjectMembers::of(seen) {
        None => false,
        Some(members) if endpoint == Endpoint::Ping && members.healthy == Some(false) => true,
        Some(members) => {
            !members.is_others && (members.code == Some(u64::from(seen.status)) || members.has_error_texts)
        }
    }
}

/// Error text of the gate in Opik's `docker-compose-auth-gate.yaml` for a wrong key.
const AUTH_GATE: &[u8] = b"Access denied: Invalid API key";

/// Parsed members of a JSON object.
#[derive(Debug, Default)]
struct ObjectMembers {
    is_empty: bool,
    code: Option<u64>,
    message: Option<String>,
    healthy: Option<bool>,
    /// `errors` is an array that begins with a text.
    has_error_texts: bool,
    /// Any other sign of an error, which contradicts a success status.
    has_error: bool,
    has_upload_id: bool,
    has_version: bool,
    names_entity: bool,
    has_partial_success: bool,
    has_empty_partial_success: bool,
    /// Errors of other systems that also have a code and a message: Kubernetes' `Status`.
    is_others: bool,
}

impl ObjectMembers {
    /// Parses the body as an object; `None` if it is something else. A truncated object is parsed as far as possible.
    fn of(seen: &Seen<'_>) -> Option<Self> {
        let mut scanner = Scanner::new(whole_characters(seen)).ok()?;
        let (members, result) = Self::read(&mut scanner);
        let is_whole = result.and_then(|()| scanner.end()).is_ok();
        (is_whole || seen.is_cut).then_some(members).filter(|_| first_byte(seen) == Some(b'{'))
    }

    /// The same of the first of several objects.
    fn of_lines(seen: &Seen<'_>) -> Option<Self> {
        let mut scanner = Scanner::new(whole_characters(seen)).ok()?;
        let (members, result) = Self::read(&mut scanner);
        (result.is_ok() || seen.is_cut).then_some(members)
    }

    fn read(scanner: &mut Scanner<'_>) -> (Self, Result<(), NotJson>) {
        let mut members = Self { is_empty: true, ..Self::default() };
        let result = scanner.object(|key, scanner| {
            members.is_empty = false;
            members.member(key, scanner)
        });
        (members, result.map(drop))
    }

    fn member(&mut self, key: &str, scanner: &mut Scanner<'_>) -> Result<(), NotJson> {
        let kind = scanner.peek()?;
        match key {
            "code" if kind == JsonKind::Scalar => {
                self.code = scanner.scalar()?.parse().ok();
                return Ok(());
            }
            "healthy" if kind == JsonKind::Scalar => {
                self.healthy = scanner.scalar()?.parse().ok();
                return Ok(());
            }
            "success" | "ok" if kind == JsonKind::Scalar => {
                self.has_error |= scanner.scalar()? == "false";
                return Ok(());
            }
            "message" if kind == JsonKind::String => {
                self.message = Some(scanner.string()?.into_owned());
                return Ok(());
            }
            "errors" if kind == JsonKind::Array => {
                self.has_error = true;
                let mut is_text = None;
                let result = scanner.array(|scanner| {
                    let kind = scanner.peek()?;
                    let is_so_far = *is_text.get_or_insert(true);
                    is_text = Some(is_so_far && kind == JsonKind::String);
                    scanner.skip_value().map(drop)
                });
                self.has_error_texts = is_text == Some(true);
                return result.map(drop);
            }
            "partialSuccess" | "partial_success" if kind == JsonKind::Object => {
                // Only its rejectedSpans and errorMessage matter; both are optional.
                let mut is_said = false;
                scanner.object(|_, scanner| {
                    let value = match scanner.peek()? {
                        JsonKind::String => scanner.string()?.into_owned(),
                        JsonKind::Scalar => scanner.scalar()?.to_owned(),
                        _ => {
                            scanner.skip_value()?;
                            String::new()
                        }
                    };
                    is_said |= !matches!(&*value, "" | "0");
                    Ok(())
                })?;
                self.has_partial_success = is_said;
                self.has_empty_partial_success = !is_said;
                return Ok(());
            }
            "error" | "errors" | "error_msg" | "error_code" if kind != JsonKind::Null => self.has_error = true,
            "upload_id" => self.has_upload_id = kind == JsonKind::String,
            "version" => self.has_version = kind == JsonKind::String,
            "id" => self.names_entity |= kind == JsonKind::String,
            "ids" => self.names_entity |= kind == JsonKind::Array,
            "apiVersion" | "statusCode" => self.is_others = true,
            _ => {}
        }
        scanner.skip_value().map(drop)
    }

    /// Returns whether this reports an error.
    fn is_error(&self) -> bool {
        self.has_error || self.code.is_some_and(|code| !(200..300).contains(&code))
    }
}

/// Returns the body without a truncated character at its end.
fn whole_characters<'a>(seen: &Seen<'a>) -> &'a [u8] {
    match std::str::from_utf8(seen.body) {
        Err(error) if seen.is_cut && error.error_len().is_none() => &seen.body[..error.valid_up_to()],
        _ => seen.body,
    }
}

fn first_byte(seen: &Seen<'_>) -> Option<u8> {
    let body = seen.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(seen.body);
    body.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

fn essence(content_type: Option<&str>) -> Option<&str> {
    let essence = content_type?.split(';').next().unwrap_or_default().trim();
    (!essence.is_empty()).then_some(essence)
}

fn is_json(seen: &Seen<'_>) -> bool {
    essence(seen.content_type).is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

fn is_html(seen: &Seen<'_>) -> bool {
    let is_named = essence(seen.content_type).is_some_and(|essence| {
        ["text/html", "application/xhtml+xml"].iter().any(|html| essence.eq_ignore_ascii_case(html))
    });
    // An empty response of that type can be recognised only by its status.
    first_byte(seen).map_or(is_named && seen.status < 400, |first| is_named || first == b'<')
}

/// Limit of a hub's own words, in characters.
const HUBS_WORDS_MAX: usize = 200;

/// Returns the message of a hub's own answer.
fn hubs_message(seen: &Seen<'_>) -> Option<String> {
    ObjectMembers::of(seen).filter(|_| seen.is_hubs)?.message
}

fn foreign(seen: &Seen<'_>) -> Foreign {
    Foreign {
        status: seen.status,
        content_type: essence(seen.content_type).map(|essence| one_line(essence, 60)),
        words: match hubs_message(seen) {
            Some(message) => one_line(&message, HUBS_WORDS_MAX),
            None => words(seen.content_type, seen.body),
        },
        is_hubs: seen.is_hubs,
        location: seen.location.filter(|_| (300..400).contains(&seen.status)).map(|location| one_line(location, 200)),
    }
}

/// Limit of the shown excerpt, in characters.
const WORDS_MAX: usize = 80;
/// Limit of the body that is scanned for the excerpt, in bytes.
const LOOKED_THROUGH_MAX: usize = 4096;

/// Returns an excerpt of a body for people: a page's title, or its text without tags.
fn words(content_type: Option<&str>, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(LOOKED_THROUGH_MAX)]);
    let is_markup = text.trim_start().starts_with('<')
        || essence(content_type).is_some_and(|essence| essence.to_ascii_lowercase().ends_with("html"));
    if !is_markup {
        return one_line(&text, WORDS_MAX);
    }
    let found = ["title", "h1", "body"].into_iter().map(|name| one_line(&plain(element(&text, name)), WORDS_MAX));
    found.into_iter().find(|words| !words.is_empty()).unwrap_or_else(|| one_line(&plain(&text), WORDS_MAX))
}

/// Returns the content of the first element of this name; up to the end if it is not closed.
fn element<'a>(text: &'a str, name: &str) -> &'a str {
    // Only ASCII letters change, so offsets stay valid.
    let lower = text.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = lower[from..].find(&format!("<{name}")).map(|at| from + at) {
        let behind = at + 1 + name.len();
        from = behind;
        if !lower[behind..].starts_with(['>', ' ', '\t', '\n', '\r', '/']) {
            continue;
        }
        let Some(start) = lower[behind..].find('>').map(|end| behind + end + 1) else { return "" };
        let end = lower[start..].find(&format!("</{name}")).map_or(text.len(), |end| start + end);
        return &text[start..end];
    }
    ""
}

/// Returns text without tags, scripts and styles, with the commonest entities decoded.
fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let lower = tag.to_ascii_lowercase();
        let hidden = ["script", "style"].into_iter().find(|name| lower.starts_with(name));
        let end = match hidden {
            Some(name) => lower.find(&format!("</{name}")).unwrap_or(tag.len()),
            None => 0,
        };
        rest = tag[end..].split_once('>').map_or("", |(_, behind)| behind);
    }
    text.push_str(rest);
    [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&#x27;", "'"), ("&nbsp;", " "), ("&amp;", "&")]
        .into_iter()
        .fold(text, |text, (entity, plain)| text.replace(entity, plain))
}

/// Returns text on one line, without what could control a terminal, at most this long.
fn one_line(text: &str, characters_max: usize) -> String {
    // Bidirectional and invisible characters could disguise the text.
    let is_odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffd}')
    };
    let clean: String = text.chars().map(|c| if is_odd(c) { ' ' } else { c }).collect();
    let joined = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    match joined.char_indices().nth(characters_max) {
        Some((at, _)) => format!("{}...", &joined[..at]),
        None => joined,
    }
}

#[cfg(test)]
mod tests;
