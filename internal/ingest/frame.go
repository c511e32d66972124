package ingest

import (
	"bytes"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
)

// maxFrameBytes bounds a frame: a commit has at most 2,000,000 bytes of blocks.
const maxFrameBytes = 2_500_000

// event is a frame of subscribeRepos, with one of its bodies. A kind that is not known has none.
type event struct {
	seq      int64
	commit   *comatproto.SyncSubscribeRepos_Commit
	sync     *comatproto.SyncSubscribeRepos_Sync
	identity *comatproto.SyncSubscribeRepos_Identity
	account  *comatproto.SyncSubscribeRepos_Account
	info     string // name
	failure  string // name of the error that ends the stream
	at       string // time
}

// parseFrame reads a frame: a header {"op", "t"} and a body, both DAG-CBOR.
func (i *Ingester) parseFrame(raw []byte) (e event, err error) {
	defer i.caught(&err)
	op, kind, rest, err := frameHeader(raw)
	if err != nil {
		return e, err
	}
	if op == -1 {
		e.failure = "unknown"
		if name, ok := textField(rest, "error"); ok {
			e.failure = name
		}
		return e, nil
	}
	if op != 1 {
		return e, invalid("a frame has op %d", op)
	}
	body := bytes.NewReader(rest)
	switch kind {
	case "#commit":
		e.commit = &comatproto.SyncSubscribeRepos_Commit{}
		err = e.commit.UnmarshalCBOR(body)
		e.seq, e.at = e.commit.Seq, e.commit.Time
	case "#sync":
		e.sync = &comatproto.SyncSubscribeRepos_Sync{}
		err = e.sync.UnmarshalCBOR(body)
		e.seq, e.at = e.sync.Seq, e.sync.Time
	case "#identity":
		e.identity = &comatproto.SyncSubscribeRepos_Identity{}
		err = e.identity.UnmarshalCBOR(body)
		e.seq, e.at = e.identity.Seq, e.identity.Time
	case "#account":
		e.account = &comatproto.SyncSubscribeRepos_Account{}
		err = e.account.UnmarshalCBOR(body)
		e.seq, e.at = e.account.Seq, e.account.Time
	case "#info":
		e.info, _ = textField(rest, "name")
		return e, nil
	default:
		return e, nil
	}
	if err == nil && e.seq <= 0 {
		err = invalid("seq is %d", e.seq)
	}
	return e, err
}

// frameHeader reads the header's map of "op" and "t", in any order.
func frameHeader(raw []byte) (op int, kind string, rest []byte, err error) {
	bad := invalid("a frame has no header")
	if len(raw) < 2 || raw[0] != 0xa1 && raw[0] != 0xa2 {
		return 0, "", nil, bad
	}
	fields := int(raw[0] & 0x0f)
	rest = raw[1:]
	for range fields {
		var key string
		var ok bool
		if key, rest, ok = text(rest); !ok || len(rest) == 0 {
			return 0, "", nil, bad
		}
		switch key {
		case "op":
			switch rest[0] {
			case 0x01:
				op = 1
			case 0x20:
				op = -1
			default:
				return 0, "", nil, bad
			}
			rest = rest[1:]
		case "t":
			if kind, rest, ok = text(rest); !ok {
				return 0, "", nil, bad
			}
		default:
			return 0, "", nil, bad
		}
	}
	return op, kind, rest, nil
}

// text is a CBOR text string of less than 256 bytes.
func text(raw []byte) (s string, rest []byte, ok bool) {
	if len(raw) == 0 {
		return "", nil, false
	}
	n, skip := int(raw[0])-0x60, 1
	if raw[0] == 0x78 && len(raw) > 1 {
		n, skip = int(raw[1]), 2
	} else if n < 0 || n > 23 {
		return "", nil, false
	}
	if len(raw) < skip+n {
		return "", nil, false
	}
	return string(raw[skip : skip+n]), raw[skip+n:], true
}

// textField is a field of a map of short texts.
func textField(raw []byte, name string) (string, bool) {
	if len(raw) == 0 || raw[0]&0xe0 != 0xa0 {
		return "", false
	}
	fields := int(raw[0] & 0x1f)
	raw = raw[1:]
	for range fields {
		key, rest, ok := text(raw)
		if !ok {
			return "", false
		}
		value, rest, ok := text(rest)
		if !ok {
			return "", false
		}
		if key == name {
			return value, true
		}
		raw = rest
	}
	return "", false
}
