//! Verdict and problems: is the data safe, is it moving, when will it be done, and what mends what is wrong.
//!
//! Pure policy: [`Facts`] in, a [`Diagnosis`] out, without a clock, a store or a terminal, so that `status` and the page
//! judge alike. The verdict is one sentence with at most one command. Problems come worst first, each with its remedies;
//! what is alike is one problem, however many lanes or files it concerns. Names from elsewhere are shortened and escaped
//! here, because a sentence has to stay readable.

mod facts;
mod problems;
mod verdict;

pub(crate) use self::facts::{
    DroppedFacts, ElsewhereFacts, Facts, FileSystemFacts, FullFacts, HeldFacts, OrphanFacts, RecoveryFacts,
    RefusedFacts, ReplayHoldFacts, StoreSituation, StrandedFacts, UnprovenFacts,
};
pub(crate) use self::problems::{Problem, Severity, held_lanes, orphaned_files};
pub(crate) use self::verdict::OverallVerdict;

/// The verdict and its problems.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Diagnosis {
    pub verdict: OverallVerdict,
    /// The worst first.
    pub problems: Vec<Problem>,
}

/// Judges what is known.
pub(crate) fn diagnose(facts: &Facts) -> Diagnosis {
    let problems = problems::problems(facts);
    Diagnosis { verdict: verdict::verdict(facts, &problems), problems }
}
