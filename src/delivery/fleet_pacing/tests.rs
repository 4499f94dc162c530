//! A simulation: many agents with a backlog each, and a server that has just come back.
//!
//! Time passes in tenths of a second. The server takes as many messages as it has capacity for, within a second; of what
//! is offered beyond, it refuses a random share, of live writes and of replayed ones alike. A live write that is refused joins the
//! backlog. An agent whose batch met a refusal waits for up to ten seconds, as after a rate limit.

use super::*;
use crate::delivery::drain_delay::drain_delay;
use crate::delivery::fleet_dial::{DialForce, DialTake, FleetDial};
use crate::delivery::pacing::{Pace, PaceSettings};

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn noise(&mut self, noise: Noise) -> f64 {
        match noise {
            Noise::Little => 0.8 + self.unit() * 0.6,
            Noise::LogNormal(deviation) => {
                let length = (-2.0 * self.unit().max(f64::MIN_POSITIVE).ln()).sqrt();
                (length * (std::f64::consts::TAU * self.unit()).cos() * deviation).exp()
            }
        }
    }
}

/// The behaviour of a server that is offered more than its capacity.
#[derive(Clone, Copy, PartialEq)]
enum Overload {
    /// It refuses what would wait for more than a second.
    Refuses,
    /// It refuses more than it had to.
    Collapses,
    /// It lets everything wait.
    Queues,
}

/// How latencies vary.
#[derive(Clone, Copy)]
enum Noise {
    /// By 0.8 to 1.4.
    Little,
    /// Log-normally, with this deviation.
    LogNormal(f64),
}

#[derive(Clone, Copy)]
struct Fleet {
    agents: usize,
    /// Live messages per second of each agent.
    live: f64,
    /// The server's capacity as a multiple of all live traffic.
    capacity: f64,
    /// How long the outage lasted, in seconds.
    outage: f64,
    overload: Overload,
    noise: Noise,
    seed: u64,
    /// Whether agents use the pace of a fleet, or today's automatic one.
    is_paced: bool,
    /// A ceiling for all of them, in messages per second.
    ceiling: Option<u64>,
    /// Whether agents heed how long answers take.
    is_timed: bool,
}

#[derive(Debug)]
struct Drain {
    /// Time until every backlog was empty, as a multiple of the ideal.
    time: f64,
    /// The share of all messages sent that the server refused.
    refused: f64,
    /// The highest rate of replayed messages in any second.
    replayed_max: f64,
    /// The latency of live writes that 99 of 100 kept below, in seconds; [`QUIET`] without any load.
    live_p99: f64,
}

struct Agent {
    backlog: u64,
    pace: Pace,
    dial: FleetDial,
    /// Messages that it sends now.
    due: u64,
    sends_at: f64,
    /// Live messages that are not whole yet.
    live: f64,
}

const STEP: f64 = 0.1;
/// The latency of a server without load; what waits in front of a request comes on top of it.
const QUIET: f64 = 0.05;
const FLEET: Fleet = Fleet {
    agents: 200,
    live: 5.0,
    capacity: 1.5,
    outage: 600.0,
    overload: Overload::Refuses,
    noise: Noise::Little,
    seed: 0x9e37_79b9_7f4a_7c15,
    is_paced: true,
    ceiling: None,
    is_timed: true,
};

const SEEDS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0x3c6e_f372_fe94_f82a];

fn dial_of(force: DialForce) -> FleetDial {
    let dial = FleetDial::new();
    dial.set(force, Duration::ZERO);
    dial
}

fn simulate(fleet: Fleet) -> Drain {
    let mut random = Random(fleet.seed);
    let ceiling = fleet.ceiling.map(MessageRate::per_second);
    let force = DialForce { ceiling, streams: 1, draining: fleet.agents as u64, held_until: None };
    let backlog = (fleet.live * fleet.outage) as u64;
    let outage = Duration::from_secs_f64(fleet.outage);
    let pace = FleetPace::of_backlog(backlog, outage);
    let settings = PaceSettings { fleet: fleet.is_paced.then_some(pace), ..PaceSettings::default() };
    let mut agents: Vec<Agent> = (0..fleet.agents)
        .map(|_| Agent {
            backlog,
            pace: Pace::start(settings),
            dial: dial_of(force),
            due: 0,
            sends_at: match fleet.is_paced {
                true => drain_delay(outage, fleet.agents as u64, random.unit()).as_secs_f64(),
                false => 0.0,
            },
            live: random.unit(),
        })
        .collect();
    let live = fleet.live * fleet.agents as f64;
    let capacity = live * fleet.capacity;
    let ideal = backlog as f64 * fleet.agents as f64 / (capacity - live);
    let mut room = capacity;
    let (mut now, mut sent, mut refused, mut replayed) = (0.0, 0_u64, 0_u64, vec![0.0]);
    let mut latencies = Vec::new();
    while agents.iter().any(|agent| agent.backlog > fleet.live as u64) && now < ideal * 5.0 {
        let at = Duration::from_secs_f64(1_000.0 + now);
        for agent in &mut agents {
            agent.due = 0;
            if agent.sends_at <= now && agent.backlog > 0 {
                let wanted = agent.backlog.min(agent.pace.batch() as u64);
                agent.due = match agent.dial.take(wanted as usize, at) {
                    DialTake::May(messages) => messages as u64,
                    DialTake::Wait(_) => 0,
                };
            }
        }
        let due: u64 = agents.iter().map(|agent| agent.due).sum();
        let offered = due as f64 + live * STEP;
        room = (room + capacity * STEP).min(capacity);
        let taken = match fleet.overload {
            Overload::Queues => f64::INFINITY,
            Overload::Collapses if offered > room => room * (room / offered).sqrt(),
            _ => room,
        };
        let refuses = (1.0 - taken / offered).max(0.0);
        let latency = QUIET + (capacity - room) / capacity;
        latencies.push(latency);
        room -= offered;
        if fleet.overload != Overload::Queues {
            room = room.max(0.0);
        }
        if replayed.len() <= now as usize {
            replayed.push(0.0);
        }
        *replayed.last_mut().expect("one at least") += due as f64;
        for agent in &mut agents {
            agent.live += fleet.live * STEP;
            while agent.live >= 1.0 {
                agent.live -= 1.0;
                sent += 1;
                if random.unit() < refuses {
                    refused += 1;
                    agent.backlog += 1;
                }
            }
            let messages = agent.due;
            if messages == 0 {
                continue;
            }
            let missed = (0..messages).filter(|_| random.unit() < refuses).count() as u64;
            (sent, refused) = (sent + messages, refused + missed);
            agent.backlog -= messages - missed;
            let pause = agent.pace.pause_after(messages as usize);
            let noise = random.noise(fleet.noise);
            let latency = Duration::from_secs_f64(latency * noise);
            let has_slowed = agent.pace.timed(latency, messages as usize) && fleet.is_timed;
            agent.pace = agent.pace.after(match (missed, has_slowed) {
                (1.., _) => BatchEnd::Strained,
                (0, true) => BatchEnd::Slowed,
                (0, false) => BatchEnd::KeptUp,
            });
            let waits = if missed > 0 { random.unit() * 10.0 } else { 0.0 };
            agent.sends_at = now + pause.as_secs_f64().max(waits);
        }
        now += STEP;
    }
    let replayed_max = replayed.into_iter().fold(0.0, f64::max);
    latencies.sort_unstable_by(f64::total_cmp);
    let live_p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(QUIET);
    Drain { time: now / ideal, refused: refused as f64 / sent as f64, replayed_max, live_p99 }
}

#[test]
fn two_hundred_agents_drain_into_a_server_without_overloading_it() {
    for fleet in [FLEET, Fleet { overload: Overload::Collapses, ..FLEET }, Fleet { outage: 3600.0, ..FLEET }] {
        let drain = simulate(fleet);
        assert!(drain.refused <= 0.02, "the server refuses {:.1} % of all messages", drain.refused * 100.0);
        assert!(drain.time <= 1.3, "the backlog is delivered in {:.2} x the ideal time", drain.time);
    }
}

#[test]
fn the_automatic_pace_overloads_such_a_server() {
    // Without this, the simulation would prove nothing.
    let drain = simulate(Fleet { is_paced: false, overload: Overload::Collapses, ..FLEET });
    assert!(drain.refused > 0.2, "{drain:?}");
}

#[test]
fn little_and_much_headroom_are_both_used() {
    for seed in SEEDS {
        for overload in [Overload::Refuses, Overload::Queues] {
            let tight = simulate(Fleet { capacity: 1.2, overload, seed, ..FLEET });
            assert!(tight.refused <= 0.02 && tight.time <= 1.3 && tight.live_p99 <= 0.4, "{tight:?}");
        }
        let ample = simulate(Fleet { capacity: 3.0, seed, ..FLEET });
        assert!(ample.refused <= 0.02 && ample.time <= 1.6 && ample.live_p99 <= 0.3, "{ample:?}");
    }
}

#[test]
fn a_lone_agent_is_soon_as_fast_as_its_server() {
    let lone = Fleet { agents: 1, capacity: 20.0, outage: 7200.0, ..FLEET };
    for seed in SEEDS {
        let drain = simulate(Fleet { seed, ..lone });
        assert!(drain.refused <= 0.01 && drain.time <= 1.5, "{drain:?}");
        for deviation in [0.3, 0.5, 1.0] {
            let drain = simulate(Fleet { seed, noise: Noise::LogNormal(deviation), ..lone });
            assert!(drain.time <= 2.5, "latencies that vary by {deviation} look like load: {drain:?}");
        }
    }
}

#[test]
fn the_dial_bounds_what_the_whole_fleet_sends() {
    let drain = simulate(Fleet { ceiling: Some(300), ..FLEET });
    assert!(drain.replayed_max <= 300.0 * 1.25 && drain.refused <= 0.001, "{drain:?}");
    // 300 of the 500 messages a second that the server could take.
    assert!(drain.time <= 500.0 / 300.0 * 1.1, "{drain:?}");
}

#[test]
fn rates_survive_any_numbers() {
    assert_eq!(MessageRate::of(18_000, Duration::from_secs(3600)).as_per_second(), 5.0);
    assert_eq!(MessageRate::of(u64::MAX, Duration::ZERO), HIGHEST);
    assert_eq!(MessageRate::default().time_for(u64::MAX), Duration::from_micros(u64::MAX));
    let mut rate = FleetRate::start(FleetPace::default());
    for _ in 0..100 {
        rate = rate.after(BatchEnd::Strained);
    }
    assert_eq!(
        (rate.rate, rate.batch()),
        (LOWEST, 1),
        "an agent without any rate never finds out that the server is back"
    );
    for _ in 0..100_000 {
        rate = rate.after(BatchEnd::KeptUp);
    }
    assert!(rate.rate <= HIGHEST && rate.batch() == BATCH_MAX);
}

#[test]
fn live_writes_wait_hardly_longer_while_a_fleet_drains() {
    for (seed, outage) in [(SEEDS[0], 600.0), (SEEDS[1], 600.0), (SEEDS[0], 3600.0)] {
        // Nothing is refused: it makes no difference what the server does with too much.
        let drain = simulate(Fleet { outage, seed, ..FLEET });
        assert!(drain.live_p99 <= QUIET * 2.1 && drain.time <= 1.15 && drain.refused == 0.0, "{drain:?}");
    }
}

#[test]
fn a_fleet_drains_into_a_server_whose_latency_varies() {
    for (deviation, live_p99) in [(0.3, 0.2), (0.5, 0.4), (1.0, 1.0)] {
        for seed in SEEDS {
            let drain = simulate(Fleet { noise: Noise::LogNormal(deviation), seed, ..FLEET });
            assert!(drain.time <= 1.3 && drain.refused <= 0.01 && drain.live_p99 <= live_p99, "{deviation}: {drain:?}");
        }
    }
}

#[test]
fn live_writes_wait_less_when_agents_heed_how_long_answers_take() {
    for capacity in [1.2, 1.5, 3.0] {
        let fleet = Fleet { capacity, ..FLEET };
        let (heeded, not) = (simulate(fleet), simulate(Fleet { is_timed: false, ..fleet }));
        assert!(heeded.live_p99 <= not.live_p99 * 0.5 && heeded.refused <= not.refused, "{heeded:?} {not:?}");
    }
}

#[test]
fn only_a_latency_that_stays_longer_is_a_sign() {
    let ms = Duration::from_millis;
    let mut rate = FleetRate::start(FleetPace::default());
    let mut timed = |latency, messages| rate.timed(ms(latency), messages);
    for latency in [20, 26, 18, 22, 28, 19, 24, 20, 27, 21, 30, 18] {
        assert!(!timed(latency, 10), "noise slows an agent down");
    }
    assert!(!timed(60, 10) && !timed(20, 10) && !timed(20, 10), "one pause of the server slows an agent down");
    assert!((0..20).any(|_| timed(200, 10)), "answers take longer and longer, and nobody heeds that");
    assert!((0..20).all(|_| !timed(900, 500)), "a larger request takes longer");
    for _ in 0..2_000 {
        timed(900, 10);
    }
    assert!(!timed(900, 10), "a server that has become slower is taken for a loaded one for ever");
    assert!(!timed(0, 10), "no latency is too short");
}
