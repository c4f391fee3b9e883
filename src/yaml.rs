//! A YAML document as a tree of texts, as they are written, that know their lines: what a text means says whoever reads it, so that `007` stays
//! `007` where a name is wanted, and is a number where one is.

use std::collections::HashMap;
use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// How deep lists and tables of a document may lie in each other.
const DEPTH_MAX: usize = 8;

/// Values that aliases (`*name`) may stand for in one document, those inside lists and tables counted.
const ALIASED_MAX: usize = 10_000;

/// One value, and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The line, counted from 1.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// A value of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text, number or switch, as written.
    Text(String),
    /// Nothing, where something could be.
    Nothing,
    /// A list.
    List(Vec<Node>),
    /// A table.
    Table(Entries),
}

/// The entries of a table in order: keys, each with its line, and what they say.
pub type Entries = Vec<(String, usize, Node)>;

/// A text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The line, counted from 1; 0 = it is in none.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Reads the one document of a text; `None` if it is empty.
///
/// # Errors
/// If it is no YAML, or uses what nobody needs here: several documents, deep nesting, keys that are no texts, aliases for very much.
pub fn read(text: &str) -> Result<Option<Node>, Unreadable> {
    read_into(Builder::default(), text)
}

/// The same for a text whose parts are moved and taken out by program: each must mean the same wherever it is.
///
/// # Errors
/// As [`read`], and if there are aliases.
pub fn read_without_aliases(text: &str) -> Result<Option<Node>, Unreadable> {
    read_into(Builder { refuses_aliases: true, ..Builder::default() }, text)
}

fn read_into(mut builder: Builder, text: &str) -> Result<Option<Node>, Unreadable> {
    let outcome = Parser::new_from_str(text).load(&mut builder, true);
    if let Some(trouble) = builder.trouble {
        return Err(trouble);
    }
    match outcome {
        Ok(()) => Ok(builder.root.filter(|n| n.value != Value::Nothing)),
        Err(e) => Err(Unreadable { line: e.marker().line(), why: e.info().to_owned() }),
    }
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    /// What was named with `&name`, by the parser's number for it.
    anchors: HashMap<usize, Node>,
    /// Values that aliases have stood for.
    aliased: usize,
    refuses_aliases: bool,
    trouble: Option<Unreadable>,
}

/// A list or table whose end has not come.
struct Open {
    line: usize,
    table: bool,
    /// The parser's number for its `&name`; 0 = it has none.
    anchor: usize,
    items: Vec<Node>,
}

impl Builder {
    fn complain(&mut self, line: usize, why: &str) {
        self.trouble.get_or_insert_with(|| Unreadable { line, why: why.to_owned() });
    }

    fn add(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None if self.root.is_some() => self.complain(node.line, "there is more than one document"),
            None => self.root = Some(node),
        }
    }

    fn alias(&mut self, line: usize, anchor: usize) {
        if self.refuses_aliases {
            return self.complain(line, "aliases (*name) are not understood here");
        }
        // Inside itself it does not stand for anything yet.
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            return self.complain(line, "an alias (*name) must not be inside what it stands for");
        };
        self.aliased += values_in(&node);
        if self.aliased > ALIASED_MAX {
            return self.complain(line, &format!("aliases (*name) stand for more than {ALIASED_MAX} values"));
        }
        self.add(Node { line, ..node }, 0);
    }

    fn begin(&mut self, line: usize, table: bool, anchor: usize) {
        if self.open.len() >= DEPTH_MAX {
            self.complain(line, "lists and tables lie too deep in each other");
        }
        if self.trouble.is_none() {
            self.open.push(Open { line, table, anchor, items: Vec::new() });
        }
    }

    fn end(&mut self) {
        let Some(Open { line, table, anchor, items }) = self.open.pop() else { return };
        if !table {
            return self.add(Node { line, value: Value::List(items) }, anchor);
        }
        let mut entries = Entries::new();
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            let Value::Text(name) = key.value else {
                return self.complain(key.line, "a key must be a plain text");
            };
            if entries.iter().any(|(other, _, _)| *other == name) {
                return self.complain(key.line, &format!("the key {name} is here twice"));
            }
            entries.push((name, key.line, value));
        }
        self.add(Node { line, value: Value::Table(entries) }, anchor);
    }
}

/// How many values there are in a value, itself included.
fn values_in(node: &Node) -> usize {
    let inside: usize = match &node.value {
        Value::Text(_) | Value::Nothing => 0,
        Value::List(items) => items.iter().map(values_in).sum(),
        Value::Table(entries) => entries.iter().map(|(_, _, node)| values_in(node)).sum(),
    };
    1 + inside
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, mark: Marker) {
        if self.trouble.is_some() {
            return;
        }
        let line = mark.line();
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let nothing = style == TScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                let value = if nothing { Value::Nothing } else { Value::Text(text) };
                self.add(Node { line, value }, anchor);
            }
            Event::SequenceStart(anchor, _) => self.begin(line, false, anchor),
            Event::MappingStart(anchor, _) => self.begin(line, true, anchor),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(line, anchor),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart
            | Event::DocumentEnd => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A document in one line: lists in brackets, tables in braces, `~` for nothing.
    fn shown(node: &Node) -> String {
        match &node.value {
            Value::Text(text) => text.clone(),
            Value::Nothing => "~".to_owned(),
            Value::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Table(entries) => {
                let entries = entries.iter().map(|(key, _, node)| format!("{key}:{}", shown(node)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn values_are_as_they_are_written() {
        for (text, expected) in [
            ("", None),
            ("# nothing\n---\n", None),
            ("a: 007\nb: 1.10\nc: 0x1F\nd: yes\ne: '~'\nf:\n", Some("{a:007 b:1.10 c:0x1F d:yes e:~ f:~}")),
            ("- [1, {x: y}]\n- \"a,b\"\n", Some("[[1 {x:y}] a,b]")),
            ("a: &one {b: [1, 2]}\nc: *one\n", Some("{a:{b:[1 2]} c:{b:[1 2]}}")),
        ] {
            let read = read(text).unwrap();
            assert_eq!(read.as_ref().map(shown).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_refused_is_named_with_its_line() {
        let bomb =
            format!("a: &a [{}]\nb: &b [{}]\nc: [{}]\n", "1,".repeat(99), "*a,".repeat(99), "*b,".repeat(99));
        for (text, line, why) in [
            ("a: 1\nb: [1\n", 3, ""),
            ("a: 1\na: 2\n", 2, "the key a is here twice"),
            ("---\na\n---\nb\n", 4, "there is more than one document"),
            ("? [1]\n: 2\n", 1, "a key must be a plain text"),
            ("a: &a [*a]\n", 1, "an alias (*name) must not be inside what it stands for"),
            ("[[[[[[[[[1]]]]]]]]]", 1, "lists and tables lie too deep in each other"),
            (&bomb, 3, "aliases (*name) stand for more than 10000 values"),
        ] {
            let refused = read(text).unwrap_err();
            assert_eq!(refused.line, line, "{text:?}: {refused:?}");
            assert!(refused.why.contains(why), "{text:?}: {refused:?}");
        }
        let refused = read_without_aliases("a: &one 1\nb: *one\n").unwrap_err();
        assert_eq!((refused.line, &*refused.why), (2, "aliases (*name) are not understood here"));
    }
}
