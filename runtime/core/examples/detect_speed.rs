//! What the built-in rules cost: nanoseconds for each event of a record that `apex-run --watch=full --events FILE` wrote.
//!
//! `cargo run --release -p apex-core --example detect_speed -- FILE`

use std::time::Instant;

use apex_core::detect::{Engine, Rules};
use apex_core::event::Event;

const TURNS: u32 = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("name a record of events")?;
    let text = std::fs::read_to_string(file)?;
    let events: Vec<Event> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let begin = Instant::now();
    let rules = Rules::built_in();
    println!("rules read in {:?}", begin.elapsed());
    let mut best = u128::MAX;
    for _ in 0..TURNS {
        let mut engine = Engine::new(rules.clone(), None);
        let begin = Instant::now();
        let findings: usize = events.iter().map(|event| engine.observe(event).len()).sum();
        best = best.min(begin.elapsed().as_nanos());
        std::hint::black_box(findings);
    }
    println!("{} events, {} ns each (the best of {TURNS})", events.len(), best / events.len().max(1) as u128);
    Ok(())
}
