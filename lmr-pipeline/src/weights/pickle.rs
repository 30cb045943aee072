//! Reads pickles as data. A pickle is a program; this machine runs only the part that builds values. Where Python would
//! import something and call it, a [`Call`] notes what would have been called with what, and nothing happens. So every
//! pickle is safe to read, whatever it names, and whoever reads the result decides what a call means to them.
//!
//! Values live in one flat list and refer to each other by index: sharing costs nothing, cycles do no harm, and neither
//! reading nor dropping recurses. Every count is bounded, and so memory: 306 MB for the most expensive pickle of the tests.
//!
//! Source: the comments in CPython's `Lib/pickletools.py`. Protocols 2 to 5, without the text opcodes of protocol 0.

use std::collections::HashMap;

/// A state dict's pickle takes about 100 bytes a tensor; BackdoorBench's, with lists of images, a few megabytes.
pub const MAX_PICKLE: usize = 64 << 20;
const MAX_OPCODES: usize = 8 << 20;
const MAX_NODES: usize = 1 << 20;
const MAX_ITEMS: usize = 4 << 20;
const MAX_STACK: usize = 1 << 20;
const MAX_MEMO: usize = 1 << 20;
const MAX_NAME: usize = 1024;

/// A part of the pickle's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    length: u32,
}

/// A value, or where it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// A longer integer: little-endian bytes, two's complement.
    Long(Span),
    /// A float.
    Float(f64),
    /// A string.
    Text(Span),
    /// A byte string.
    Bytes(Span),
    /// Everything that holds other values.
    Node(u32),
}

/// Something that holds other values.
#[derive(Debug)]
pub enum Node {
    /// A list, a tuple or a set.
    Sequence(Vec<Value>),
    /// A dict in the order of insertion; a key may occur more than once, the last one counts.
    Dict(Vec<(Value, Value)>),
    /// A name that Python would import.
    Global {
        /// The module.
        module: Span,
        /// The name in it.
        name: Span,
    },
    /// What the file keeps outside of the pickle, under this id.
    Persistent(Value),
    /// What Python would have called.
    Call(Box<Call>),
}

/// A call that was not made, and what Python would have done with its result.
#[derive(Debug)]
pub struct Call {
    /// What would have been called; usually a [`Node::Global`].
    pub callable: Value,
    /// Its arguments, a [`Node::Sequence`].
    pub arguments: Value,
    /// What would have been passed to `__setstate__`, usually the attributes.
    pub state: Value,
    /// Items set on the result, for dict-like objects.
    pub items: Vec<(Value, Value)>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    root: Value,
    length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the beginning of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let bytes = &bytes[..bytes.len().min(MAX_PICKLE)];
        let mut machine = Machine { bytes, ..Machine::default() };
        let root = machine.run().map_err(|message| format!("its pickle {message} (byte {})", machine.at))?;
        Ok(Self { bytes, nodes: machine.nodes, root, length: machine.at })
    }

    /// The value that was pickled.
    pub fn root(&self) -> Value {
        self.root
    }

    /// How many bytes the pickle takes.
    pub fn byte_len(&self) -> usize {
        self.length
    }

    /// How many values hold others: `Value::Node` has the indices below.
    pub fn node_count(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// What a value holds, unless it is a plain one.
    pub fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(index) => self.nodes.get(index as usize),
            _ => None,
        }
    }

    /// The bytes of a string, byte string or long integer.
    pub fn span(&self, span: Span) -> &'a [u8] {
        self.bytes.get(span.start as usize..).and_then(|rest| rest.get(..span.length as usize)).unwrap_or_default()
    }

    /// A string, if the value is one and valid UTF-8.
    pub fn text(&self, value: Value) -> Option<&'a str> {
        match value {
            Value::Text(span) => std::str::from_utf8(self.span(span)).ok(),
            _ => None,
        }
    }

    /// Module and name, if the value is an imported name.
    pub fn global(&self, value: Value) -> Option<(&'a str, &'a str)> {
        match self.node(value)? {
            Node::Global { module, name } => {
                Some((std::str::from_utf8(self.span(*module)).ok()?, std::str::from_utf8(self.span(*name)).ok()?))
            }
            _ => None,
        }
    }

    /// The elements of a list, tuple or set.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Sequence(elements) => Some(elements),
            _ => None,
        }
    }

    /// A call, the imported name it calls, and its arguments.
    pub fn call(&self, value: Value) -> Option<(&Call, &'a str, &'a str, &[Value])> {
        match self.node(value)? {
            Node::Call(call) => {
                let (module, name) = self.global(call.callable)?;
                Some((call, module, name, self.sequence(call.arguments)?))
            }
            _ => None,
        }
    }

    /// The items of a dict or of an `OrderedDict`.
    pub fn items(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.node(value)? {
            Node::Dict(items) => Some(items),
            Node::Call(call) if self.global(call.callable) == Some(("collections", "OrderedDict")) => Some(&call.items),
            _ => None,
        }
    }

    /// The value under a string key.
    pub fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let items = self.items(dict)?;
        items.iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }
}

/// The stack machine.
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack where a `MARK` stands.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    nodes: Vec<Node>,
    /// Values that nodes hold, all nodes together.
    items: usize,
}

impl Machine<'_> {
    /// Runs up to `STOP`.
    fn run(&mut self) -> Result<Value, String> {
        for _ in 0..MAX_OPCODES {
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
            if self.stack.len() > MAX_STACK || self.marks.len() > MAX_STACK {
                return Err(format!("puts more than {MAX_STACK} values on its stack"));
            }
        }
        Err(format!("has more than {MAX_OPCODES} instructions"))
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(format!("has protocol {other}; expected 2 to 5")),
            },
            // FRAME only helps to read from a socket.
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => self.push_int(1)?,
            b'M' => self.push_int(2)?,
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            b'X' => self.spanned(4, Value::Text)?,
            0x8c => self.spanned(1, Value::Text)?,
            0x8d => self.spanned(8, Value::Text)?,
            // What Python 2 calls a string: text for torch, which pickled its names so.
            b'T' => self.spanned(4, Value::Text)?,
            b'U' => self.spanned(1, Value::Text)?,
            b'B' => self.spanned(4, Value::Bytes)?,
            b'C' => self.spanned(1, Value::Bytes)?,
            0x8e | 0x96 => self.spanned(8, Value::Bytes)?,
            b']' | b')' | 0x8f => self.push_sequence(Vec::new())?,
            0x85..=0x87 => {
                let elements = self.pop_many(usize::from(opcode - 0x84))?;
                self.push_sequence(elements)?;
            }
            b't' | b'l' | 0x91 => {
                let elements = self.pop_mark()?;
                self.push_sequence(elements)?;
            }
            b'}' => self.push_node(Node::Dict(Vec::new()))?,
            b'd' => {
                let elements = self.pop_mark()?;
                self.push_node(Node::Dict(Vec::new()))?;
                self.set_items(&elements)?;
            }
            b'a' => {
                let element = self.pop()?;
                self.extend(&[element])?;
            }
            b'e' | 0x90 => {
                let elements = self.pop_mark()?;
                self.extend(&elements)?;
            }
            b's' => {
                let elements = self.pop_many(2)?;
                self.set_items(&elements)?;
            }
            b'u' => {
                let elements = self.pop_mark()?;
                self.set_items(&elements)?;
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'q' => {
                let index = self.unsigned(1)? as u32;
                self.memorize(index)?;
            }
            b'r' => {
                let index = self.unsigned(4)? as u32;
                self.memorize(index)?;
            }
            0x94 => self.memorize(self.memo.len() as u32)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_node(Node::Global { module, name })?;
            }
            0x93 => match self.pop_many(2)?.as_slice() {
                [Value::Text(module), Value::Text(name)] => {
                    self.push_node(Node::Global { module: *module, name: *name })?;
                }
                _ => return Err("imports something whose name is no string".into()),
            },
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.push_call(callable, arguments)?;
            }
            0x92 => {
                let (_keywords, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.push_call(callable, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                if let Node::Call(call) = self.top_node()? {
                    call.state = state;
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_node(Node::Persistent(id))?;
            }
            other => return Err(format!("has the instruction 0x{other:02x}, which torch.save does not write")),
        }
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<Span, String> {
        let rest = self.bytes.len() - self.at;
        if length > rest {
            return Err(format!("is cut off: {length} bytes should follow, there are {rest}"));
        }
        // Both fit: no pickle is longer than MAX_PICKLE.
        let span = Span { start: self.at as u32, length: length as u32 };
        self.at += length;
        Ok(span)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let span = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[span.start as usize..][..N]);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    /// An unsigned little-endian number of `width` bytes, at most 8.
    fn unsigned(&mut self, width: usize) -> Result<u64, String> {
        let span = self.take(width)?;
        let mut array = [0; 8];
        array[..width].copy_from_slice(&self.bytes[span.start as usize..][..width]);
        Ok(u64::from_le_bytes(array))
    }

    /// A length of `width` bytes, and so many bytes.
    fn counted(&mut self, width: usize) -> Result<Span, String> {
        let length = self.unsigned(width)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn spanned(&mut self, width: usize, value: fn(Span) -> Value) -> Result<(), String> {
        let span = self.counted(width)?;
        self.stack.push(value(span));
        Ok(())
    }

    fn push_int(&mut self, width: usize) -> Result<(), String> {
        let value = self.unsigned(width)?;
        self.stack.push(Value::Int(value as i64));
        Ok(())
    }

    fn long(&mut self, width: usize) -> Result<(), String> {
        let span = self.counted(width)?;
        let bytes = &self.bytes[span.start as usize..][..span.length as usize];
        let value = if bytes.len() <= 8 {
            let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
            let mut array = [sign; 8];
            array[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(array))
        } else {
            Value::Long(span)
        };
        self.stack.push(value);
        Ok(())
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<Span, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_NAME).position(|byte| *byte == b'\n');
        let span = self.take(end.ok_or("has a name without an end")?)?;
        self.at += 1;
        Ok(span)
    }

    fn push_node(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("builds more than {MAX_NODES} objects"));
        }
        self.stack.push(Value::Node(self.nodes.len() as u32));
        self.nodes.push(node);
        Ok(())
    }

    fn push_sequence(&mut self, elements: Vec<Value>) -> Result<(), String> {
        self.count(elements.len())?;
        self.push_node(Node::Sequence(elements))
    }

    fn push_call(&mut self, callable: Value, arguments: Value) -> Result<(), String> {
        self.push_node(Node::Call(Box::new(Call { callable, arguments, state: Value::None, items: Vec::new() })))
    }

    fn count(&mut self, more: usize) -> Result<(), String> {
        self.items += more;
        if self.items > MAX_ITEMS {
            return Err(format!("builds objects with more than {MAX_ITEMS} elements"));
        }
        Ok(())
    }

    /// The top of the stack, above the last mark.
    fn top(&self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor.min(self.stack.len())..].last().copied().ok_or_else(|| "takes from an empty stack".into())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The topmost `count` values, lowest first.
    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>, String> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        values.reverse();
        Ok(values)
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("takes from an empty stack")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn top_node(&mut self) -> Result<&mut Node, String> {
        match self.top()? {
            Value::Node(index) => self.nodes.get_mut(index as usize).ok_or_else(|| "refers to nothing".into()),
            _ => Err("changes a value that cannot change".into()),
        }
    }

    /// Appends to the list on top. What is appended to an object of unknown type is dropped.
    fn extend(&mut self, elements: &[Value]) -> Result<(), String> {
        self.count(elements.len())?;
        if let Node::Sequence(list) = self.top_node()? {
            list.extend(elements);
        }
        Ok(())
    }

    /// Sets keys and values, in turns, on the dict on top.
    fn set_items(&mut self, elements: &[Value]) -> Result<(), String> {
        self.count(elements.len())?;
        let (pairs, rest) = elements.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("sets a key without a value".into());
        }
        let pairs = pairs.iter().map(|[key, value]| (*key, *value));
        match self.top_node()? {
            Node::Dict(items) => items.extend(pairs),
            Node::Call(call) => call.items.extend(pairs),
            _ => return Err("sets a key on something that is no dict".into()),
        }
        Ok(())
    }

    fn memorize(&mut self, index: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(index, top);
        if self.memo.len() > MAX_MEMO {
            return Err(format!("remembers more than {MAX_MEMO} values"));
        }
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let index = self.unsigned(width)? as u32;
        let value = self.memo.get(&index).ok_or_else(|| format!("recalls value {index}, which it never stored"))?;
        self.stack.push(*value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn calls_are_noted_and_not_made() {
        let bytes = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.";
        let pickle = Pickle::read(bytes).unwrap();
        let (_, module, name, arguments) = pickle.call(pickle.root()).unwrap();
        assert_eq!((module, name, pickle.text(arguments[0])), ("posix", "system", Some("true")));
        assert_eq!(pickle.byte_len(), bytes.len());
    }

    #[test]
    fn values_are_read() {
        // {"a": [1, -2, 300, 2.5, None, True], "b": (b"x",)} with protocol 4.
        let bytes = b"\x80\x04\x95\x2b\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM\x2c\x01G\x40\x04\0\0\0\0\0\0N\x88e\x8c\x01b\x94C\x01x\x94\x85\x94u.";
        let pickle = Pickle::read(bytes).unwrap();
        let list = pickle.sequence(pickle.get(pickle.root(), "a").unwrap()).unwrap();
        assert_eq!(
            list,
            [Value::Int(1), Value::Int(-2), Value::Int(300), Value::Float(2.5), Value::None, Value::Bool(true)]
        );
        let tuple = pickle.sequence(pickle.get(pickle.root(), "b").unwrap()).unwrap();
        assert!(matches!(tuple, [Value::Bytes(span)] if pickle.span(*span) == b"x"));
    }

    /// 40 doublings would be a tree of 2^40 leaves.
    #[test]
    fn sharing_costs_nothing() {
        let bytes = [b"\x80\x02)", b"2\x86".repeat(40).as_slice(), b"."].concat();
        let pickle = Pickle::read(&bytes).unwrap();
        assert_eq!(pickle.nodes.len(), 41);
    }

    #[rstest]
    #[case::empty(b"".to_vec(), "is cut off")]
    #[case::protocol_0(b"I1\n.".to_vec(), "the instruction 0x49")]
    #[case::protocol_9(b"\x80\x09N.".to_vec(), "has protocol 9")]
    #[case::underflow(b"\x80\x020.".to_vec(), "takes from an empty stack")]
    #[case::below_a_mark(b"\x80\x02N(0.".to_vec(), "takes from an empty stack")]
    #[case::no_mark(b"\x80\x02e.".to_vec(), "takes from an empty stack")]
    #[case::memo(b"\x80\x02h\x07.".to_vec(), "recalls value 7")]
    #[case::long_string(b"\x80\x02X\xff\xff\xff\xffab.".to_vec(), "4294967295 bytes should follow, there are 3")]
    #[case::huge_string(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.".to_vec(), "should follow, there are 3")]
    #[case::odd_items(b"\x80\x02}(Nu.".to_vec(), "a key without a value")]
    #[case::key_on_a_list(b"\x80\x02](NNu.".to_vec(), "something that is no dict")]
    #[case::append_to_none(b"\x80\x02NNa.".to_vec(), "cannot change")]
    #[case::global(b"\x80\x02cposix".to_vec(), "a name without an end")]
    #[case::nameless(b"\x80\x04NN\x93.".to_vec(), "whose name is no string")]
    #[case::marks(b"(".repeat(2 << 20), "values on its stack")]
    #[case::stack(b"N".repeat(2 << 20), "values on its stack")]
    #[case::objects(b"]0".repeat(2 << 20), "more than 1048576 objects")]
    #[case::deep(b")\x85".repeat(1 << 20), "more than 1048576 objects")]
    #[case::elements([b"]".to_vec(), [b"(", b"N".repeat(1000).as_slice(), b"e"].concat().repeat(4200)].concat(), "more than 4194304 elements")]
    #[case::memos([&b"N"[..], &b"\x94".repeat(2 << 20)].concat(), "remembers more than")]
    #[case::endless(b"N0".repeat(8 << 20), "instructions")]
    fn broken_pickles_are_explained(#[case] bytes: Vec<u8>, #[case] expected: &str) {
        let message = Pickle::read(&bytes).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
