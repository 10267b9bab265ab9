//! Recognises readers that go forward, so that what they will need can be decoded ahead of them.

use parking_lot::Mutex;

/// How far ahead of a sequential reader data is decoded, in bytes.
pub const READ_AHEAD: u64 = 4 << 20;
/// Requests of one stream may arrive out of order by this much, in bytes.
const SLACK: u64 = 1 << 20;
/// Streams tracked at once.
const STREAMS: usize = 4;

/// The streams of one device.
#[derive(Default)]
pub struct Streams(Mutex<[Stream; STREAMS]>);

#[derive(Clone, Copy, Default)]
struct Stream {
    /// End of the furthest read so far.
    end: u64,
    /// End of what was asked to be decoded.
    ahead: u64,
    /// Reads that continued it.
    hits: u32,
}

impl Streams {
    /// Notes a read; returns the range to decode ahead, if it belongs to a stream.
    pub fn note(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let mut streams = self.0.lock();
        let near = |s: &Stream| {
            s.end > 0
                && start >= s.end.saturating_sub(SLACK)
                && start <= s.end.saturating_add(SLACK)
        };
        let Some(stream) = streams.iter_mut().find(|s| near(s)) else {
            streams.rotate_right(1);
            if let Some(first) = streams.first_mut() {
                *first = Stream {
                    end,
                    ahead: end,
                    hits: 0,
                };
            }
            return None;
        };
        if end > stream.end {
            stream.hits = stream.hits.saturating_add(1);
            stream.end = end;
        }
        let target = stream.end.saturating_add(READ_AHEAD);
        let from = stream.ahead.max(stream.end);
        // In portions, so that looking the range up is not done for every small read.
        if stream.hits < 2 || target.saturating_sub(from) < READ_AHEAD / 8 {
            return None;
        }
        stream.ahead = target;
        Some((from, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readers_that_go_on_are_followed() {
        let streams = Streams::default();
        assert_eq!(streams.note(0, 100), None);
        assert_eq!(streams.note(100, 200), None);
        assert_eq!(streams.note(200, 300), Some((300, 300 + READ_AHEAD)));
        assert_eq!(streams.note(300, 400), None);
        for at in 1..20 {
            assert_eq!(streams.note(at << 30, (at << 30) + 1), None);
        }
    }
}
