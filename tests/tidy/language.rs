//! Standard terms instead of paraphrases, in comments, messages, test names and documents.
//!
//! Two lists, counted per 1,000 words. `ODD` has turns that a native reader stumbles over, most of them calques ("says
//! whether", "what is to be sent", "is no file"); `STANDARD` has terms of the field that such turns paraphrase. The
//! counts are a floor: what decides is that a stranger reads a page aloud without stumbling, and finds each idea under
//! its usual name (the glossary is in CONTRIBUTING.md). Text in backquotes counts as one word without a meaning.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::sync::LazyLock;

use crate::repository::committed;
use crate::source::{Source, root, sources};

/// How many odd turns an area may have in 1,000 words.
const ODD_MAX: f64 = 1.0;
/// How many standard terms 1,000 words of `src/` have at least.
const STANDARD_MIN: f64 = 10.0;

/// Areas that have more odd turns today, with their maximum in 1,000 words: a number only shrinks.
const ODD_TODAY: &[(&str, f64)] = &[];

/// How many standard terms `src/` has at least today, while that is less than `STANDARD_MIN`; it only grows.
const STANDARD_TODAY: Option<f64> = None;

/// An area that ODD_TODAY limits separately has at least this many words.
const ROOM_WORDS_MIN: usize = 250;

/// This file quotes what it forbids.
const NOT_READ: &str = "tests/tidy/language.rs";

/// Turns that a native reader stumbles over.
///
/// A pattern is a row of words: `a|b` is either, `a*` begins with, `*` is any word, `^` begins a sentence, `$` ends a
/// clause, `<a|b` at its begin and `!a|b` at its end forbid the word before and after.
const ODD: &[&str] = &[
    // Predicates: "returns whether", "checks that", "ensures that".
    "says|say whether|if|that",
    "^ says what|how|which|where|why|when",
    "tell|tells whether|if",
    "look|looks|looked whether|if",
    "see|sees|saw to it",
    "is|are told|said",
    // Obligation: "must be", "has to be".
    "<there|that is|are|was|were to be",
    // Negation: "is not a".
    "<there is|are|was|were|be no !longer|more|one|way|need|such|doubt|room|later|other|better|worse|less|fewer|sooner|guarantee|point|answer|reason|earlier",
    "is|are|was|were nothing of",
    "nothing of it|them|that|these|before",
    // Location and state: "is", "contains".
    "stand|stands|stood|lie|lies|lay in|there|on|at|under|before|behind|beside|with !for",
    "as|how it|they|a|the stand|stands|lie|lies",
    "how it|they stands|stand",
    // Verbs with the wrong particle: "releases", "requeues", "continues", "returns", "checks".
    "let|lets go",
    "let|lets it|them|him go",
    "let|lets a|the|this|that|its|their * go",
    "put|puts|putting back",
    "put|puts|putting it|them|him|her back",
    "put|puts|putting a|the|this|that|what * back",
    "given back",
    "give|gives|gave back",
    "give|gives|gave it|them back",
    "give|gives|gave a|the|this|that|its|their * back",
    "go|goes|went on !to|for|with",
    "put|puts down",
    "take|takes|took leave",
    "look|looks|looked after|through",
    "come|comes|came|coming to its|their|an|his end",
    "go|goes|going free",
    "keep|keeps|kept it|them back",
    "hold|holds|held it|them back",
    // Counting and order: "n", "previous".
    "<the|as|not so many !of|as|that",
    "of|from before !the|a|it|its|any|this|that|they|we",
    "gone by",
    "once for all",
    // Subjects without an actor: name it.
    "whoever|whomever|whosoever",
    "whatever !the|its|their|happens|your|our|it",
    "^ who * * !$",
    "nobody's|nobodys",
    "belong|belongs to nobody",
    "somebody took|has|moves|else",
    "those who",
    "there are|is those who|that",
    // Idioms of another language.
    "be it|they !$",
    "in which|whose way",
    "by the name|number of !the",
    "fault|faults of its|their|our own",
    "without a|any sign|fault of",
    "any more $",
    "of its|their own accord",
    "taken for !a|each|every|granted|the",
    "take|takes|took * for a|an|its",
    "take|takes|took the|a|its * for a|an|its",
    "in their|its stead",
    "belongs to nobody",
    "as it|they well",
    "all the same $",
    "may|might be gone",
];

/// Terms of the field, by language.md's first rule: retry instead of "try again", evict instead of "throw out".
const STANDARD: &[&str] = &[
    "retry|retries|retried|retrying|retryable",
    "back|backs|backed off",
    "backoff|idempoten*|dedup*|evict*|expir*|throttl*|poison|lease|leases|leased|fencing|checkpoint*|corrupt*|quarantin*",
    "rate limit*",
    "circuit breaker*",
    "defer|deferred|defers|deferring",
    "dead letter*",
    "in flight",
    "write ahead",
    "hot journal*",
    "salvag*|snapshot*|encrypt*|decrypt*|heartbeat*|deadline*|timeout*|backpressure|disjoint|superset|invariant*",
    "key rotation*",
    "timed|time|times out|outs",
    "head of line",
    "cache|caches|cached|caching|concurren*|latenc*|throughput|payload*|parse|parses|parsed|parser|parsers|parsing|validat*|schema*",
];

#[test]
fn texts_use_the_terms_of_the_field() {
    let texts = texts();
    print_rates(&texts);
    let mut faults = String::new();
    for area in ["src", "tests", "documents"] {
        check_odd(area, &texts, &mut faults);
    }
    for (room, _) in ODD_TODAY.iter().filter(|(room, _)| room.contains('/')) {
        check_odd(room, &texts, &mut faults);
    }
    let src = Count::of(texts.iter().filter(|text| text.is_in("src")));
    let standard = src.per_thousand(src.standard);
    let min = STANDARD_TODAY.unwrap_or(STANDARD_MIN);
    if standard < min {
        faults.push_str(&format!("src: {standard:.1} standard terms in 1,000 words, at least {min:.1} are required\n"));
    }
    if STANDARD_TODAY.is_some() && standard >= STANDARD_MIN {
        faults.push_str("STANDARD_TODAY is no longer needed: set it to None\n");
    }
    assert!(faults.is_empty(), "say it as the field says it (CONTRIBUTING.md has the glossary):\n{faults}");
}

/// Prints the rates of every area and room, which a failure shows: `rate src/store 1.2 12.0 4100`.
fn print_rates(texts: &[Text]) {
    let room = |text: &Text| {
        let inside = text.path.strip_prefix("src/")?;
        Some(format!("src/{}", inside.split('/').next()?.trim_end_matches(".rs")))
    };
    let rooms: BTreeSet<String> = texts.iter().filter_map(room).collect();
    for area in ["src", "tests", "documents"].into_iter().chain(rooms.iter().map(String::as_str)) {
        let count = Count::of(texts.iter().filter(|text| text.is_in(area)));
        let (odd, standard) = (count.per_thousand(count.odd), count.per_thousand(count.standard));
        println!("rate {area} {odd:.3} {standard:.3} {}", count.words);
    }
}

/// Reports an area that has more odd turns than it may, with all of them, or less than its exception allows for.
fn check_odd(area: &str, texts: &[Text], faults: &mut String) {
    let of_area: Vec<&Text> = texts.iter().filter(|text| text.is_in(area)).collect();
    let count = Count::of(of_area.iter().copied());
    let odd = count.per_thousand(count.odd);
    let exception = ODD_TODAY.iter().find(|(name, _)| *name == area).map(|(_, max)| *max);
    if exception.is_some() && (odd <= ODD_MAX || count.words < ROOM_WORDS_MIN) {
        faults.push_str(&format!("{area} is no longer an exception ({odd:.1}): remove it from ODD_TODAY\n"));
    }
    let max = exception.unwrap_or(ODD_MAX);
    if odd > max {
        faults.push_str(&format!("{area}: {odd:.1} odd turns in 1,000 words, at most {max:.1} are allowed:\n"));
        for text in of_area {
            for turn in &text.odd_turns {
                faults.push_str(&format!("  {}:{}: {turn}\n", text.path, text.line));
            }
        }
    }
}

/// Words, odd turns and standard terms.
#[derive(Default)]
struct Count {
    words: usize,
    odd: usize,
    standard: usize,
}

impl Count {
    fn of<'a>(texts: impl Iterator<Item = &'a Text>) -> Self {
        let mut count = Self::default();
        for text in texts {
            count.words += text.words;
            count.odd += text.odd_turns.len();
            count.standard += text.standard_terms;
        }
        count
    }

    fn per_thousand(&self, found: usize) -> f64 {
        found as f64 * 1000.0 / self.words.max(1) as f64
    }
}

/// One comment, message, test name or paragraph.
struct Text {
    path: String,
    line: usize,
    words: usize,
    /// Each with the words around it.
    odd_turns: Vec<String>,
    standard_terms: usize,
}

/// A word in lower case, or a mark that ends a clause.
struct Token {
    word: String,
    begins_sentence: bool,
    is_capital: bool,
    /// Whether it counts as a word: no mark does, and of `write-ahead` only the first part.
    is_counted: bool,
}

impl Text {
    fn new(path: &str, line: usize, text: &str) -> Self {
        static PARSED: LazyLock<[Patterns; 2]> = LazyLock::new(|| [Patterns::parse(ODD), Patterns::parse(STANDARD)]);
        let [odd, standard] = &*PARSED;
        let tokens = tokens(text);
        let mut turns = odd.found(&tokens);
        turns.extend(clauses_as_subject(&tokens));
        let describe = |(from, to): (usize, usize)| {
            let around = &tokens[from.saturating_sub(5)..(to + 5).min(tokens.len())];
            let words = |tokens: &[Token]| tokens.iter().map(|token| token.word.clone()).collect::<Vec<_>>().join(" ");
            format!("\"{}\" in \"{}\"", words(&tokens[from..to]), words(around))
        };
        Self {
            path: path.to_owned(),
            line,
            words: tokens.iter().filter(|token| token.is_counted).count(),
            odd_turns: turns.into_iter().map(describe).collect(),
            standard_terms: standard.found(&tokens).len(),
        }
    }

    fn is_in(&self, area: &str) -> bool {
        match area {
            "src" => self.path.starts_with("src/"),
            "tests" => {
                ["tests/", "benches/", "fuzz/"].iter().any(|folder| self.path.starts_with(folder)) && self.is_rust()
            }
            "documents" => !self.is_rust(),
            room => self.path.starts_with(&format!("{room}/")) || self.path == format!("{room}.rs"),
        }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Returns the begins of sentences such as "What finds no worker now is looked for again", which are not questions.
fn clauses_as_subject(tokens: &[Token]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let begins = |(at, token): &(usize, &Token)| *at == 0 || token.begins_sentence && token.is_capital;
    for (at, _) in tokens.iter().enumerate().filter(begins).filter(|(_, token)| token.word == "what") {
        let end = tokens[at..].iter().find(|token| [".", "?", ":"].contains(&token.word.as_str()));
        let is_heading = end.is_none_or(|end| end.word == ":") && tokens[at..].len() < 6;
        if !is_heading && end.is_none_or(|end| end.word != "?") {
            found.push((at, (at + 2).min(tokens.len())));
        }
    }
    found
}

/// Parsed patterns, by the words that each can begin with.
struct Patterns {
    by_word: HashMap<&'static str, Vec<Vec<&'static str>>>,
    by_prefix: Vec<(&'static str, Vec<&'static str>)>,
}

impl Patterns {
    fn parse(patterns: &[&'static str]) -> Self {
        let (mut by_word, mut by_prefix) = (HashMap::<_, Vec<_>>::new(), Vec::new());
        for pattern in patterns {
            let slots: Vec<&str> = pattern.split(' ').collect();
            let first = slots.iter().find(|slot| !slot.starts_with(['<', '^'])).expect("a pattern has a word");
            for word in first.split('|') {
                match word.strip_suffix('*') {
                    Some(prefix) => by_prefix.push((prefix, slots.clone())),
                    None => by_word.entry(word).or_default().push(slots.clone()),
                }
            }
        }
        Self { by_word, by_prefix }
    }

    /// Returns where these patterns match, as ranges of tokens. A word takes part in one match only.
    fn found(&self, tokens: &[Token]) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let word = tokens[at].word.as_str();
            let by_prefix =
                self.by_prefix.iter().filter(|(prefix, _)| word.starts_with(prefix)).map(|(_, slots)| slots);
            let candidates = self.by_word.get(word).into_iter().flatten().chain(by_prefix);
            let end = candidates.filter_map(|slots| matched(slots, tokens, at)).max();
            found.extend(end.map(|end| (at, end)));
            at = end.unwrap_or(at + 1);
        }
        found
    }
}

/// Returns where a pattern that begins here ends.
fn matched(pattern: &[&str], tokens: &[Token], begin: usize) -> Option<usize> {
    let mut at = begin;
    for slot in pattern {
        if let Some(before) = slot.strip_prefix('<') {
            (begin == 0 || !is_one_of(before, &tokens[begin - 1].word)).then_some(())?;
        } else if let Some(after) = slot.strip_prefix('!') {
            let is_forbidden = match tokens.get(at) {
                Some(token) => is_one_of(after, &token.word) || after == "$" && token.is_mark(),
                None => after == "$",
            };
            (!is_forbidden).then_some(())?;
        } else if *slot == "^" {
            tokens[begin].begins_sentence.then_some(())?;
        } else if *slot == "$" {
            tokens.get(at).is_none_or(Token::is_mark).then_some(())?;
        } else {
            let token = tokens.get(at)?;
            (if *slot == "*" { !token.is_mark() } else { is_one_of(slot, &token.word) }).then_some(())?;
            at += 1;
        }
    }
    Some(at)
}

fn is_one_of(alternatives: &str, word: &str) -> bool {
    alternatives.split('|').any(|alternative| match alternative.strip_suffix('*') {
        Some(start) if !start.is_empty() => word.starts_with(start),
        _ => alternative == word,
    })
}

impl Token {
    fn is_mark(&self) -> bool {
        self.word.chars().all(|c| c.is_ascii_punctuation())
    }
}

/// Returns the words and marks of a text; text in backquotes is the word `CODE`.
fn tokens(text: &str) -> Vec<Token> {
    let mut found: Vec<Token> = Vec::new();
    let mut begins_sentence = true;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = if c == '`' {
            let end = rest[1..].find('`').map_or(rest.len(), |end| end + 2);
            found.push(Token { word: "CODE".to_owned(), begins_sentence, is_capital: false, is_counted: true });
            begins_sentence = false;
            end
        } else if c.is_ascii_alphabetic() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '\'').unwrap_or(rest.len());
            let is_counted = !text[..text.len() - rest.len()].ends_with('-');
            let is_capital = c.is_ascii_uppercase();
            found.push(Token { word: rest[..end].to_ascii_lowercase(), begins_sentence, is_capital, is_counted });
            begins_sentence = false;
            end
        } else {
            let ends_here = rest[c.len_utf8()..].chars().next().is_none_or(|next| next.is_whitespace() || next == ')');
            if ".,;:?!".contains(c) && ends_here {
                let word = c.to_string();
                found.push(Token { word, begins_sentence: false, is_capital: false, is_counted: false });
                begins_sentence = ".;?!:".contains(c);
            }
            c.len_utf8()
        };
        rest = &rest[taken..];
    }
    found
}

/// Returns every text of the repository.
fn texts() -> Vec<Text> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        for file in sources(folder).iter().filter(|file| file.path != NOT_READ) {
            add_rust(file, &mut found);
        }
    }
    for path in committed().unwrap_or_default() {
        let is_commented = ["contrib/", "packaging/", ".ci/", "deny.toml"].iter().any(|place| path.starts_with(place));
        let is_document = path.ends_with(".md");
        if let (true, Ok(text)) = (is_document || is_commented, fs::read_to_string(root().join(&path))) {
            if is_document { add_markdown(&path, &text, &mut found) } else { add_script(&path, &text, &mut found) }
        }
    }
    found
}

/// Adds the comments, the messages and the names of tests of a Rust file.
fn add_rust(file: &Source, found: &mut Vec<Text>) {
    let lines = file.comments.iter().map(|(line, text)| (*line, text.trim_start_matches(['/', '!', '*', ' '])));
    add_blocks(&file.path, lines, found);
    for (line, text) in &file.strings {
        let text = without_placeholders(&text.replace("\\n", " . ").replace("\\\"", " "));
        if text.split_whitespace().filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())).count() >= 3 {
            found.push(Text::new(&file.path, *line, &text));
        }
    }
    for (at, _) in file.code.match_indices("fn ") {
        let name = file.code[at + "fn ".len()..].split('(').next().unwrap_or_default();
        if name.matches('_').count() >= 3 && file.code[at + "fn ".len() + name.len()..].starts_with("()") {
            found.push(Text::new(&file.path, file.line(at), &name.replace('_', " ")));
        }
    }
}

/// Replaces the placeholders of a format string with `CODE`.
fn without_placeholders(text: &str) -> String {
    let mut found = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        found.push_str(before);
        rest = match after.split_once('}') {
            Some((inside, after)) if !inside.contains(' ') => {
                found.push_str("`CODE`");
                after
            }
            _ => after,
        };
    }
    found + rest
}

/// Adds the comments of a script or a configuration.
fn add_script(path: &str, text: &str, found: &mut Vec<Text>) {
    let lines = text.lines().enumerate().filter_map(|(number, line)| {
        let comment = line.trim_start().strip_prefix('#').filter(|comment| !comment.starts_with('!'))?;
        Some((number + 1, comment.trim_start()))
    });
    add_blocks(path, lines, found);
}

/// Adds each block of neighbouring lines as one text, without what is fenced as code.
fn add_blocks<'a>(path: &str, lines: impl Iterator<Item = (usize, &'a str)>, found: &mut Vec<Text>) {
    let (mut block, mut begin, mut last, mut is_fenced) = (String::new(), 0, usize::MAX - 1, false);
    for (line, text) in lines {
        is_fenced &= line == last + 1;
        if line != last + 1 || text.is_empty() {
            found.extend((!block.is_empty()).then(|| Text::new(path, begin, &block)));
            (block, begin) = (String::new(), line);
        }
        last = line;
        if text.starts_with("```") {
            is_fenced = !is_fenced;
        } else if !is_fenced {
            block = block + " " + text;
        }
    }
    found.extend((!block.is_empty()).then(|| Text::new(path, begin, &block)));
}

/// Adds the paragraphs and the rows of tables of a document.
fn add_markdown(path: &str, text: &str, found: &mut Vec<Text>) {
    let (mut block, mut begin, mut is_fenced) = (String::new(), 1, false);
    for (number, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        let is_code = is_fence || is_fenced || line.starts_with("    ") && block.is_empty();
        let starts = ["|", "#", "- "].iter().any(|mark| line.trim_start().starts_with(mark));
        if is_code || starts || line.is_empty() {
            found.extend((!block.is_empty()).then(|| Text::new(path, begin, &block)));
            (block, begin) = (String::new(), number + 1);
        }
        if !is_code {
            block = block + " " + &line.replace('|', " . ");
        }
    }
    found.extend((!block.is_empty()).then(|| Text::new(path, begin, &block)));
}

#[test]
fn odd_turns_and_standard_terms_are_found_in_every_kind_of_text() {
    let text = "//! Says whether it is\n//! there. What is sent is\n//! counted.\n\nfn a_log_that_stands_there() {}\n\
                const A: &str = \"this is no file, retry: `says if`\"; // Is it? What is it?\n";
    let mut texts = Vec::new();
    add_rust(&Source::parse("src/x.rs".into(), text.into()), &mut texts);
    add_markdown(
        "x.md",
        "# What is it\n\n```\nsays if\n```\n- it lies there\n| put it back | `let go` |\n",
        &mut texts,
    );
    let odd = texts.iter().flat_map(|text| &text.odd_turns);
    let turns: Vec<&str> = odd.filter_map(|turn| turn.split('"').nth(1)).collect();
    assert_eq!(turns, ["says whether", "what is", "is no", "stands there", "lies there", "put it back"]);
    assert_eq!(Count::of(texts.iter()).standard, 1);
}
