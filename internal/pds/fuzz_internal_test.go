package pds

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	lexutil "github.com/bluesky-social/indigo/lex/util"

	"atcr.io/internal/sqldb"
	"atcr.io/test/archive"
)

// Would catch stored bytes that bring the host down when they are read, and a record that is another one when it is
// written back as it was read.
func FuzzRecordCBOR(f *testing.F) {
	for _, text := range []string{`{}`, `{"n":1,"l":[true,null,"x"]}`, `{"b":{"$bytes":"AQI"}}`, `{"l":{"$link":"bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"}}`} {
		e, err := encode(Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: []byte(text)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.value)
	}
	f.Add([]byte{0xa1, 0x61, 'a', 0xfb, 0, 0, 0, 0, 0, 0, 0, 0})  // a float
	f.Add([]byte{0xbf, 0x61, 'a', 0x01, 0xff})                    // of no given length
	f.Add(bytes.Repeat([]byte{0x81}, 1000))                       // deep
	f.Add([]byte{0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}) // as long as it says
	f.Add([]byte{0xa1, 0x61, 'a', 0xd8, 0x2a, 0x41, 0x00})        // a CID of no bytes
	f.Add([]byte{0xa2, 0x61, 'a', 0x01, 0x61, 'a', 0x02})         // a key twice
	f.Add([]byte{0xa1, 0x61, 'a', 0x61, 0xff})                    // text that is not UTF-8
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := recordJSON(raw)
		if err != nil {
			return
		}
		data, err := atdata.UnmarshalCBOR(raw)
		if err != nil {
			t.Fatalf("%x was read once", raw)
		}
		if kind, ok := data["$type"].(string); ok && kind != "com.example.thing" {
			return
		}
		e, err := encode(Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: text})
		if err != nil {
			if !errors.Is(err, ErrInvalidRecord) {
				t.Fatalf("%x is read as %s: %v", raw, text, err)
			}
			return
		}
		again, err := recordJSON(e.value)
		if err != nil {
			t.Fatalf("%x is read as %s, and then not: %v", raw, text, err)
		}
		data["$type"] = "com.example.thing"
		if want, err := atdata.MarshalCBOR(data); err == nil && !bytes.Equal(want, e.value) {
			t.Fatalf("%x is read as %s, then as %s", raw, text, again)
		}
	})
}

// commitsOf are the messages of a small repo's commits.
func commitsOf(f testing.TB) (out []*comatproto.SyncSubscribeRepos_Commit) {
	f.Helper()
	key, err := atcrypto.ParsePrivateBytesK256(bytes.Repeat([]byte{7}, 32)) // the same in every process
	if err != nil {
		f.Fatal(err)
	}
	db, err := sqldb.Open(f.Context(), filepath.Join(f.TempDir(), "db.sqlite3"))
	if err != nil {
		f.Fatal(err)
	}
	h, err := Open(f.Context(), Config{DB: db, Now: func() time.Time { return time.Unix(1_800_000_000, 0) }})
	if err != nil {
		f.Fatal(err)
	}
	r, err := h.AddRepo(f.Context(), "did:web:hold.example", key, "")
	if err != nil {
		f.Fatal(err)
	}
	for i := range 8 {
		write := Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: []byte(`{"n":` + string(rune('0'+i)) + `}`)}
		other := Write{Action: Create, Collection: "com.example.thing", Value: []byte(`{}`)}
		if _, err := r.Apply(f.Context(), []Write{write, other}, nil); err != nil {
			f.Fatal(err)
		}
	}
	events, err := h.events.stored(f.Context(), 0, 100, 1<<20, "ASC")
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range events {
		if body, ok := bytes.CutPrefix(e.Frame, []byte("\xa2atg#commitbop\x01")); ok {
			var m comatproto.SyncSubscribeRepos_Commit
			if err := m.UnmarshalCBOR(bytes.NewReader(body)); err != nil {
				f.Fatal(err)
			}
			out = append(out, &m)
		}
	}
	h.Close()
	if err := db.Close(); err != nil { // what it does beside would pass for what an input does
		f.Fatal(err)
	}
	return out
}

// Would catch a CAR that brings down who checks it before a commit, keeps them busy, or passes for another commit.
func FuzzCAR(f *testing.F) {
	messages := commitsOf(f)
	for i, m := range messages {
		f.Add(uint8(i), []byte(m.Blocks), i%2 == 0)
	}
	f.Add(uint8(0), []byte{}, false)
	f.Add(uint8(0), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, false) // a section as long as it says
	f.Fuzz(func(t *testing.T, which uint8, blocks []byte, mending bool) {
		m := *messages[int(which)%len(messages)]
		genuine := bytes.Equal(blocks, m.Blocks)
		if m.Blocks = blocks; mending {
			m.Blocks = archive.Mend(blocks)
			if header, err := readSection(bufio.NewReader(bytes.NewReader(m.Blocks)), maxArchiveHeader); err == nil {
				if root, err := archiveRoot(header); err == nil {
					m.Commit = lexutil.LexLink(root)
				}
			}
		}
		err := verify(context.Background(), &m)
		if genuine && err != nil {
			t.Fatal(err)
		}
		if err == nil && !genuine {
			for i, other := range messages { // another's blocks are not this message's
				if i != int(which)%len(messages) && bytes.Equal(blocks, other.Blocks) {
					t.Fatal("the blocks of another commit pass")
				}
			}
		}
	})
}
