package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// answer is the line of --json, field by field: others read it.
type answer struct {
	AppView, Hold, HoldDid, PDS, PLC string
	Accounts                         []struct{ Handle, DID, Password string }
}

// The whole of ATCR in one process: catches every break of the path that users take, and a --json line
// that is not alone on standard output or has other fields.
func TestOnce(t *testing.T) {
	t.Parallel()
	var stdout bytes.Buffer
	stderr := &watch{found: make(chan struct{})}
	if err := run(t.Context(), []string{"--once", "--json", "--port", "0"}, &stdout, stderr); err != nil {
		t.Fatalf("%v\n%s", err, &stderr.seen)
	}
	t.Log(stderr.seen.String())
	if strings.Count(stdout.String(), "\n") != 1 {
		t.Fatalf("standard output is not one line:\n%s", &stdout)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(stdout.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"appview", "hold", "holdDid", "pds", "plc", "accounts"} {
		if _, ok := fields[name]; !ok || len(fields) != 6 {
			t.Errorf("fields of %s: want %q and five others", &stdout, name)
		}
	}
	var a answer
	if err := json.Unmarshal(stdout.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(a.AppView, "http://127.0.0.1:") || !strings.HasPrefix(a.HoldDid, "did:web:localhost%3A") ||
		len(a.Accounts) != 2 || a.Accounts[0].Handle != "alice.test" || a.Accounts[1].Handle != "bob.test" {
		t.Errorf("%+v", a)
	}
	for _, person := range a.Accounts {
		if !strings.HasPrefix(person.DID, "did:plc:") || !regexp.MustCompile(`^([a-z2-7]{4}-){3}[a-z2-7]{4}$`).MatchString(person.Password) {
			t.Errorf("account %+v", person)
		}
	}
	if res, err := http.Get(a.AppView + "/v2/"); err == nil {
		_ = res.Body.Close()
		t.Error("the AppView still answers after --once")
	}
}

// Catches data that is lost or refused when the demo is started again in the same folder (a hold's DID has
// its port in it), a demo that does not end on Ctrl-C, and an end that is reported as a failure.
func TestDataAndInterrupt(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	var first, second bytes.Buffer
	if err := run(t.Context(), []string{"--once", "--json", "--data", dir}, &first, io.Discard); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stderr := &watch{text: "Running until Ctrl-C", found: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"--json", "--data", dir}, &second, stderr) }()
	select {
	case <-stderr.found:
	case err := <-ended:
		t.Fatalf("it ended by itself: %v", err)
	}
	if first.String() != second.String() {
		t.Errorf("the second start is another network:\n%s%s", &first, &second)
	}
	interrupt()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after Ctrl-C: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not end on Ctrl-C")
	}
	if _, err := os.Stat(filepath.Join(dir, "ports.json")); err != nil {
		t.Errorf("--data was not kept: %v", err)
	}
}

// Catches a Ctrl-C in the middle that counts as success, or is reported as somebody's network error.
func TestInterruptedEarly(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := run(ctx, []string{"--once"}, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("error %v", err)
	}
}

// watch closes found when a text was written.
type watch struct {
	text  string
	found chan struct{}

	mu   sync.Mutex // what runs in the background logs too
	seen strings.Builder
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := strings.Contains(w.seen.String(), w.text)
	w.seen.Write(p)
	if !before && strings.Contains(w.seen.String(), w.text) {
		close(w.found)
	}
	return len(p), nil
}

func TestArguments(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string // in the error; "" for success
		out  string
	}{
		{[]string{"--help"}, "", "--once"},
		{[]string{"-h"}, "", "--data DIR"},
		{[]string{"--hello"}, "", "Hello from a container"},
		{[]string{"--port", "70000"}, "65535", ""},
		{[]string{"--port", "x"}, "port", ""},
		{[]string{"start"}, "unknown argument", ""},
		{[]string{"--twice"}, "twice", ""},
		{[]string{"--log", "loud"}, "debug, info, warn or error", ""},
		{[]string{"--data", file}, "--data", ""},
	} {
		var stdout bytes.Buffer
		err := run(t.Context(), c.args, &stdout, io.Discard)
		if c.want == "" && (err != nil || !strings.Contains(stdout.String(), c.out)) {
			t.Errorf("%v: %v\n%s", c.args, err, &stdout)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: error %v, want one with %q", c.args, err, c.want)
		}
	}
}

// Catches a demo that says "verified" without having looked.
func TestVerify(t *testing.T) {
	t.Parallel()
	make := func(text string) (v1.Image, *content) {
		img, err := image([]string{"/x"}, entry{"a", 0o644, []byte("the same")}, entry{"b", 0o644, []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		c, err := contentOf(img)
		if err != nil {
			t.Fatal(err)
		}
		return img, c
	}
	one, want := make("one")
	if err := verify(one, want); err != nil {
		t.Errorf("an image against itself: %v", err)
	}
	two, _ := make("two")
	if err := verify(two, want); err == nil {
		t.Error("another image passed")
	}
	for i := range want.blobs {
		wrong := *want
		wrong.blobs = append([]v1.Descriptor(nil), want.blobs...)
		wrong.blobs[i].Size++
		if err := verify(one, &wrong); err == nil {
			t.Errorf("blob %d of another size passed", i)
		}
	}
	if err := refused(nil); err == nil {
		t.Error("a pull that worked counts as refused")
	}
	if err := refused(io.ErrUnexpectedEOF); err == nil {
		t.Error("a pull that broke counts as refused")
	}
}
