package oracle

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/identity"

	"atcr.io/lexicons"
	"atcr.io/test/components/toolbox"
)

//go:embed verify.mjs
var verify string

// Would catch exports, proofs and frames that the reference implementation does not take: a repo that nobody
// can move away from this hold, and records that nobody can believe.
func TestReferenceImplementation(t *testing.T) {
	t.Parallel()
	packages, err := toolbox.Packages("reference")
	if err != nil {
		t.Fatal(err)
	}
	node, err := toolbox.Path("node")
	if err != nil {
		t.Fatal(err)
	}
	h := startHold(t)
	const records = 450
	before := filepath.Join(t.TempDir(), "before.car")
	for round := range 3 {
		if round == 2 {
			h.save(t, before)
		}
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
	said := judge(t, node, packages, verify, h.url, h.did.String(), key.DIDKey(), "com.example.note/1-7", before)
	var got struct {
		Records                int
		Kinds, Changed, Events map[string]int
	}
	if err := json.Unmarshal(said, &got); err != nil {
		t.Fatalf("%s: %v", said, err)
	}
	if got.Records != len(h.records(t)) || got.Kinds["#commit"] != 2+3+2 || got.Kinds["#sync"] != 1 || got.Kinds["#identity"] != 1 || got.Kinds["#account"] != 1 {
		t.Errorf("%s", said)
	}
	if got.Changed["create"] != records/3 || got.Changed["update"] != 1 || got.Changed["delete"] != 1 {
		t.Errorf("since: %s", said)
	}
	if got.Events["create"]-got.Events["delete"] != got.Records || got.Events["update"] != 1 || got.Events["delete"] != 1 || got.Events["sync"] != 1 || got.Events["identity"] != 1 || got.Events["account"] != 1 {
		t.Errorf("events: %s", said)
	}
}

// save keeps the repo as it is now.
func (h *holdServer) save(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/xrpc/com.atproto.sync.getRepo?did="+h.did.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(f, res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
}

//go:embed api.mjs
var api string

// Would catch an endpoint that the reference client cannot call, or whose answer it does not take: each is called
// once at least, and answered, with tokens that the reference implementation signed, and every answer is held against the
// Lexicons that the client was published with.
func TestReferenceClient(t *testing.T) {
	t.Parallel()
	packages, err := toolbox.Packages("reference")
	if err != nil {
		t.Fatal(err)
	}
	node, err := toolbox.Path("node")
	if err != nil {
		t.Fatal(err)
	}
	h := startHold(t)
	in, err := json.Marshal(map[string]any{
		"url": h.url, "did": h.did, "owner": owner, "key": hex.EncodeToString(h.key.Bytes()), "lexicons": ourLexicons(t), "digest": h.push(t, []byte("{}")),
	})
	if err != nil {
		t.Fatal(err)
	}
	said := judgeWith(t, node, packages, api, bytes.NewReader(in))
	var got struct{ Calls, Answered []string }
	if err := json.Unmarshal(said, &got); err != nil {
		t.Fatalf("%s: %v", said, err)
	}
	for _, nsid := range h.Methods() {
		// The firehose is judged by what follows it.
		if nsid != "com.atproto.sync.subscribeRepos" && !slices.Contains(got.Answered, nsid) {
			t.Errorf("no call of %s is in the table, or none with an answer", nsid)
		}
	}
	if len(got.Calls) < 50 || len(h.Methods()) < 30 {
		t.Errorf("%d calls of %d methods", len(got.Calls), len(h.Methods()))
	}
}

// ourLexicons are the project's own, all of them.
func ourLexicons(t *testing.T) (out []json.RawMessage) {
	t.Helper()
	err := fs.WalkDir(lexicons.FS, "io", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := lexicons.FS.ReadFile(path)
		out = append(out, raw)
		return err
	})
	if err != nil || len(out) < 15 {
		t.Fatal(len(out), err)
	}
	return out
}

// push uploads a blob as docker does, by the owner, and returns its digest.
func (h *holdServer) push(t *testing.T, data []byte) string {
	t.Helper()
	digest := "sha256:" + hex.EncodeToString(sum(data))
	raw := h.call(t, "io.atcr.hold.initiateUpload", map[string]string{"digest": digest})
	var upload struct{ UploadURL string }
	if err := json.Unmarshal(raw, &upload); err != nil {
		t.Fatal(err)
	}
	// Its host is the hold's name, which nothing here resolves.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, strings.Replace(upload.UploadURL, "http://hold.test", h.url, 1)+"?digest="+digest, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		t.Fatal(res.Status)
	}
	return digest
}

func sum(data []byte) []byte {
	s := sha256.Sum256(data)
	return s[:]
}

// judge runs a script beside the packages that it needs, and returns what it prints.
func judge(t *testing.T, node, packages, script string, args ...string) []byte {
	t.Helper()
	return judgeWith(t, node, packages, script, nil, args...)
}

// judgeWith is judge with a standard input.
func judgeWith(t *testing.T, node, packages, script string, in io.Reader, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), node, append([]string{"--input-type=module", "--eval", script, "--"}, args...)...)
	cmd.Dir = packages // from where a script of the command line finds them
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, problems.String())
	}
	return out.Bytes()
}
