//! Generations: the order of the requests of one claim.
//!
//! Confirmed messages are settled, in one commit, before a request is sent that conflicts with one of them: a crash
//! then repeats only the newest write of each entity, never an older one over a newer one. In the order of acceptance,
//! a backlog of N updates for each of M entities would need a commit for nearly every request. Sorted by *generation*,
//! it needs one per generation: first all requests that conflict with no earlier one, then those that conflict with the
//! first generation only, and so on. Order changes only between requests that don't conflict.

use std::collections::HashMap;

use crate::message::{Effect, EntityKey, Touch};

/// Sorts requests, given in an order in which they may be sent, by generation. `touches` calls its second argument
/// with the touches of each message of a request.
pub(crate) fn by_generation<T>(mut requests: Vec<T>, touches: impl Fn(&T, &mut dyn FnMut(&[Touch]))) -> Vec<T> {
    if requests.len() < 3 {
        return requests;
    }
    // The last generation so far that ends an entity, creates or changes it, or refers to it, counted from 1.
    let mut last: HashMap<EntityKey, [u32; 3]> = HashMap::new();
    let mut generations = Vec::with_capacity(requests.len());
    for request in &requests {
        let mut generation = 1;
        touches(request, &mut |touches| {
            for touch in touches {
                let Some(before) = last.get(&touch.key) else { continue };
                for other in [Effect::End, Effect::Create, Effect::Refer] {
                    if touch.effect.conflicts(other) && before[class(other)] >= generation {
                        generation = before[class(other)] + 1;
                    }
                }
            }
        });
        touches(request, &mut |touches| {
            for touch in touches {
                let last = &mut last.entry(touch.key).or_default()[class(touch.effect)];
                *last = generation.max(*last);
            }
        });
        generations.push(generation);
    }
    if generations.is_sorted() {
        return requests;
    }
    let mut generations = generations.into_iter();
    let mut numbered: Vec<(u32, T)> =
        requests.drain(..).map(|request| (generations.next().unwrap_or(0), request)).collect();
    numbered.sort_by_key(|(generation, _)| *generation);
    numbered.into_iter().map(|(_, request)| request).collect()
}

/// Effects of one class conflict with the same others.
fn class(effect: Effect) -> usize {
    match effect {
        Effect::End => 0,
        Effect::Create | Effect::Update | Effect::Annotate => 1,
        Effect::Refer => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{EntityKind, conflict};

    fn touch(entity: &str, effect: Effect) -> Touch {
        Touch { key: EntityKey::new(EntityKind::Trace, entity), effect }
    }

    fn sorted(requests: Vec<Vec<Touch>>) -> Vec<usize> {
        let numbered = requests.into_iter().enumerate().collect();
        let sorted = by_generation(numbered, |(_, touches): &(usize, Vec<Touch>), look| look(touches));
        sorted.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn each_request_is_in_the_first_generation_after_its_conflicts() {
        use Effect::{Annotate, Create, End, Refer, Update};
        let one = |entity, effect| vec![touch(entity, effect)];
        for (requests, expected, what) in [
            (
                vec![one("a", Create), one("a", Update), one("b", Create), one("b", Update), one("a", Annotate)],
                vec![0, 2, 1, 3, 4],
                "creates, then first changes, then second ones",
            ),
            (
                vec![
                    one("a", Create),
                    one("b", Refer),
                    one("a", Refer),
                    one("a", End),
                    one("b", Create),
                    one("a", Refer),
                ],
                vec![0, 1, 2, 4, 3, 5],
                "a reference waits only for an end",
            ),
            (vec![one("a", Update), one("a", Update), one("a", Update)], vec![0, 1, 2], "one entity keeps its order"),
        ] {
            assert_eq!(sorted(requests), expected, "{what}");
        }
    }

    #[test]
    fn conflicting_requests_always_keep_their_order() {
        let effects = [Effect::End, Effect::Create, Effect::Update, Effect::Annotate, Effect::Refer];
        let mut dice: u64 = 1;
        let mut below = |sides: usize| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % sides
        };
        for _ in 0..200 {
            let mut requests: Vec<Vec<Touch>> = Vec::new();
            for _ in 0..30 {
                let names = ["a", "b", "c", "d", "e"];
                let touches = (0..=below(2)).map(|_| touch(names[below(5)], effects[below(5)])).collect();
                requests.push(Touch::distinct(touches));
            }
            let order = sorted(requests.clone());
            for (place, &later) in order.iter().enumerate() {
                for &earlier in &order[place + 1..] {
                    let overtaken = earlier < later && conflict(&requests[earlier], &requests[later]);
                    assert!(!overtaken, "{earlier} is sent after {later}");
                }
            }
        }
    }
}
