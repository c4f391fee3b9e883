//! A YAML document as a tree of texts that know their lines.

use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// How deep lists and tables of a document may lie in each other.
const DEPTH_MAX: usize = 8;

/// One value, and the line it begins on (from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A text, number or switch, as written.
    Text(String),
    /// Nothing, where something could be.
    Nothing,
    /// A list.
    List(Vec<Node>),
    /// A table: keys in order, each with its line.
    Table(Vec<(String, usize, Node)>),
}

/// A text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub line: usize,
    pub why: String,
}

/// Reads the one document of a text; `None` if it is empty.
///
/// # Errors
/// If it is no YAML, or uses what nobody needs here: several documents, aliases, deep nesting.
pub(super) fn read(text: &str) -> Result<Option<Node>, Unreadable> {
    let mut builder = Builder::default();
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
    trouble: Option<Unreadable>,
}

/// A list or table whose end has not come.
struct Open {
    line: usize,
    table: bool,
    items: Vec<Node>,
}

impl Builder {
    fn complain(&mut self, line: usize, why: &str) {
        self.trouble.get_or_insert_with(|| Unreadable { line, why: why.to_owned() });
    }

    fn add(&mut self, node: Node) {
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None if self.root.is_some() => self.complain(node.line, "there is more than one document"),
            None => self.root = Some(node),
        }
    }

    fn begin(&mut self, line: usize, table: bool) {
        if self.open.len() >= DEPTH_MAX {
            self.complain(line, "lists and tables lie too deep in each other");
        }
        if self.trouble.is_none() {
            self.open.push(Open { line, table, items: Vec::new() });
        }
    }

    fn end(&mut self) {
        let Some(Open { line, table, items }) = self.open.pop() else { return };
        if !table {
            return self.add(Node { line, value: Value::List(items) });
        }
        let mut entries: Vec<(String, usize, Node)> = Vec::new();
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
        self.add(Node { line, value: Value::Table(entries) });
    }
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, mark: Marker) {
        if self.trouble.is_some() {
            return;
        }
        let line = mark.line();
        match event {
            Event::Scalar(text, style, _, _) => {
                let nothing = style == TScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                let value = if nothing { Value::Nothing } else { Value::Text(text) };
                self.add(Node { line, value });
            }
            Event::SequenceStart(..) => self.begin(line, false),
            Event::MappingStart(..) => self.begin(line, true),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(_) => self.complain(line, "aliases (*name) are not understood here"),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart
            | Event::DocumentEnd => {}
        }
    }
}
