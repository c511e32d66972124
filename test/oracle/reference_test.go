package oracle

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"

	"github.com/bluesky-social/indigo/atproto/identity"

	"atcr.io/test/components/toolbox"
)

//go:embed verify.mjs
var verify string

// Would catch exports, proofs and frames that the reference implementation does not take: a repo that nobody
// can move away from this hold, and records that nobody can believe.
func TestReferenceImplementation(t *testing.T) {
	t.Parallel()
	packages, err := toolbox.Devnet()
	if err != nil {
		t.Fatal(err)
	}
	node, err := toolbox.Path("node")
	if err != nil {
		t.Fatal(err)
	}
	h := startHold(t)
	const records = 450
	for round := range 3 {
		var writes []map[string]any
		for i := range records / 3 {
			writes = append(writes, map[string]any{
				"$type": "com.atproto.repo.applyWrites#create", "collection": "com.example.note", "rkey": fmt.Sprintf("%d-%d", round, i),
				"value": map[string]any{"$type": "com.example.note", "text": fmt.Sprint("ünicode ", i), "number": i, "nested": map[string]any{"list": []any{nil, true, -1}}},
			})
		}
		h.call(t, "com.atproto.repo.applyWrites", map[string]any{"repo": h.did, "writes": writes})
	}
	h.call(t, "com.atproto.repo.deleteRecord", h.record("0-7", ""))
	h.call(t, "com.atproto.repo.putRecord", h.record("1-7", "changed"))
	document := h.document(t.Context(), t)
	who := identity.ParseIdentity(&document)
	key, err := who.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	said := judge(t, node, packages, verify, h.url, h.did.String(), key.DIDKey(), "com.example.note/1-7")
	var got struct {
		Records int
		Kinds   map[string]int
	}
	if err := json.Unmarshal(said, &got); err != nil {
		t.Fatalf("%s: %v", said, err)
	}
	if own := 3; got.Records != records-1+own || got.Kinds["#commit"] != 2+3+2 || got.Kinds["#sync"] != 1 || got.Kinds["#identity"] != 1 || got.Kinds["#account"] != 1 {
		t.Errorf("%s", said)
	}
}

// judge runs a script beside the packages that it needs, and returns what it prints.
func judge(t *testing.T, node, packages, script string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), node, append([]string{"--input-type=module", "--eval", script, "--"}, args...)...)
	cmd.Dir = packages // from where a script of the command line finds them
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, problems.String())
	}
	return out.Bytes()
}
