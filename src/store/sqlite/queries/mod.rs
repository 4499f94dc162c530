//! All SQL but that of single records ([`super::record`]), named after the question it answers.
//!
//! Statements are constants, or composed of constants and the fixed fragments of [`SqlFilter`]; values are always
//! bound, never written into the text. Where both the summary and the messages can answer, [`SqlFilter`] decides.

mod attachments;
mod browse;
mod counts;
mod lanes;
mod messages;
mod recovery;
mod replay;
mod sealing;
mod selection;
mod shipped;

pub(super) use self::attachments::*;
pub(super) use self::browse::*;
pub(super) use self::counts::*;
pub(super) use self::lanes::*;
pub(super) use self::messages::*;
pub(super) use self::recovery::*;
pub(super) use self::replay::*;
pub(super) use self::sealing::*;
pub(super) use self::selection::*;
pub(super) use self::shipped::*;

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use rusqlite::config::DbConfig;

    use super::*;
    use crate::message::MessageStatus;
    use crate::store::Filter;
    use crate::store::sqlite::schema;

    /// Returns SQLite's query plan.
    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement =
            connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("the statement fits the schema");
        let steps = statement.raw_query().mapped(|row| row.get::<_, String>(3));
        steps.collect::<rusqlite::Result<Vec<_>>>().expect("a plan").join("; ")
    }

    #[test]
    fn frequent_queries_use_an_index() {
        let mut connection = Connection::open_in_memory().expect("memory");
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).expect("as every connection of a store");
        schema::migrate(&mut connection).expect("a schema");
        let all = SqlFilter::of(&Filter::default());
        let rejected = SqlFilter::of(&Filter { statuses: vec![MessageStatus::Rejected], ..Filter::default() });
        let of_type =
            SqlFilter::of(&Filter { types: vec![crate::message::MessageType::UpdateTrace], ..Filter::default() });
        let by_id = SqlFilter::of(&Filter { ids: vec![crate::message::MessageId(1)], ..Filter::default() });
        for (sql, expected) in [
            (WAITING.to_owned(), "SEARCH summary USING PRIMARY KEY (lane_id=? AND status=?)"),
            (BacklogQueries::of(11).change, "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (BacklogQueries::of(11).unindexed, "SEARCH messages USING INTEGER PRIMARY KEY (rowid<?)"),
            (waiting_in_order(&all), "SEARCH messages USING INDEX messages_waiting (lane_id=? AND position>?)"),
            (waiting_in_order(&of_type), "SEARCH messages USING INDEX messages_waiting (lane_id=? AND position>?)"),
            (waiting_in_order(&by_id), "SEARCH messages USING INTEGER PRIMARY KEY (rowid=?)"),
            (first_waiting(&all), "SEARCH messages USING INDEX messages_waiting (lane_id=?)"),
            (oldest_in_flight(&all), "messages_in_flight"),
            (WAITING_TOUCHES.to_owned(), "SEARCH messages USING INDEX messages_waiting (lane_id=?)"),
            (TOUCHES_IN_FLIGHT.to_owned(), "SEARCH messages USING INDEX messages_in_flight (lane_id=?)"),
            (LEFT_IN_FLIGHT.to_owned(), "messages_in_flight"),
            (IN_FLIGHT_UP_TO.to_owned(), "SEARCH messages USING INDEX messages_in_flight (lane_id=?)"),
            (
                WAITS_UP_TO.to_owned(),
                "SEARCH messages USING COVERING INDEX messages_waiting (lane_id=? AND position<?)",
            ),
            (
                WAITS_MOVED.to_owned(),
                "SEARCH messages USING COVERING INDEX messages_waiting (lane_id=? AND position>?)",
            ),
            (INTERRUPTED.to_owned(), "SEARCH messages USING INDEX messages_waiting (lane_id=?)"),
            (page(&all, false, true), "SEARCH messages USING INTEGER PRIMARY KEY (rowid>?)"),
            (page(&rejected, true, false), "SEARCH messages USING INDEX messages_rejected (status=?)"),
            (to_purge(&rejected, false), "messages_rejected (status=?)"),
            (requeue(&all, MessageStatus::Rejected), "messages_rejected (status=?)"),
            (requeue(&all, MessageStatus::Held), "messages_held"),
            (ANY_REJECTED.to_owned(), "messages_rejected (status=?)"),
            (ANY_HELD.to_owned(), "messages_held"),
            (HELD_LAST.to_owned(), "messages_held (lane_id=?)"),
            (HELD_LONGEST.to_owned(), "messages_held (lane_id=?)"),
            (RELEASE_HELD.to_owned(), "messages_held (lane_id=?)"),
            (REFUSED_CREATE.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (CHANGED_UP_TO.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (WAITING_UP_TO.to_owned(), "messages_waiting (lane_id=? AND position<?)"),
            (ANY_UPDATE.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=?)"),
            (WAITING_UPDATES.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (PIECE.to_owned(), "SEARCH attachment_pieces USING INTEGER PRIMARY KEY (rowid=?)"),
            (PIECE.to_owned(), "SEARCH attachments USING"),
            (RELEASED_ATTACHMENT.to_owned(), "SEARCH attachments USING INDEX"),
            (UPLOADS.to_owned(), "SEARCH attachments USING INDEX"),
            (RELEASE_ATTACHMENT.to_owned(), "SEARCH attachments USING"),
            (REMOVE_PIECES.to_owned(), "SEARCH attachment_pieces USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (FIRST_CREATE.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (UNSHIPPED.to_owned(), "SEARCH messages USING INTEGER PRIMARY KEY (rowid>?)"),
            (COUNT_UNSHIPPED.to_owned(), "SEARCH messages USING INTEGER PRIMARY KEY (rowid>?)"),
            (OPEN_BUNDLE.to_owned(), "shipped_by_bundle (stream_id=? AND bundle>?)"),
            (OUTSTANDING_AND_GONE.to_owned(), "SEARCH messages USING INTEGER PRIMARY KEY (rowid=?)"),
        ] {
            let plan = plan(&connection, &sql);
            assert!(plan.contains(expected), "{sql}\n{plan}");
            assert!(!plan.contains("SCAN messages;") && !plan.ends_with("SCAN messages"), "{sql}\n{plan}");
        }
        for sql in [
            INTERRUPTED.to_owned(),
            WAITING_TOUCHES.to_owned(),
            waiting_in_order(&all),
            waiting_in_order(&of_type),
            page(&rejected, true, false),
        ] {
            assert!(!plan(&connection, &sql).contains("TEMP B-TREE"), "{sql} sorts");
        }
        for sql in [counted(&of_type), failed_by_lane(&of_type), rejected_by_answer(&all)] {
            assert!(!plan(&connection, &sql).contains("messages"), "{sql} does not count by the summary");
        }
    }
}
