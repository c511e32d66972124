package components

import (
	"bufio"
	"context"
	_ "embed" // start.mjs
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"atcr.io/test/components/toolbox"
)

//go:embed devnet/start.mjs
var startDevnet string

// PDS is a running reference PDS (@atproto/pds) beside a did:plc directory of its own.
type PDS struct {
	URL      string    // http://localhost:PORT
	DID      string    // did:web:localhost%3APORT
	PLCURL   string    // http://localhost:PORT
	Accounts []Account // in the order of the handles given
	Data     string    `json:"-"` // folder of its databases
}

// Account is a person at a PDS.
type Account struct {
	Handle, DID string
	Password    string // the main password
	AppPassword string
}

// StartReferencePDS starts a PDS and a PLC directory, and makes an account a handle, which must end in .test.
// The PDS resolves its own handles (com.atproto.identity.resolveHandle), reaches loopback addresses, has no
// rate limits, and signs service tokens for the audience did:web:localhost%3APORT but not for 127.0.0.1.
func StartReferencePDS(tb TB, handles ...string) *PDS {
	tb.Helper()
	return StartReferencePDSWith(tb, Neighbours{}, handles...)
}

// Neighbours are servers of a test that a PDS is to reach.
type Neighbours struct {
	Names []string // each leads to 127.0.0.1. An OAuth client's is below home.arpa: the PDS refuses .test and others
	CA    []byte   // that the PDS trusts besides, in PEM
	// PLCURL is another PDS's directory; "" starts one.
	PLCURL string
	// Lexicons is the DID of the account whose repo has all Lexicons; "" has them looked up in DNS.
	Lexicons string
}

// StartReferencePDSWith is StartReferencePDS for a PDS with neighbours. Names need root, for a hosts file that
// the PDS alone sees.
func StartReferencePDSWith(tb TB, n Neighbours, handles ...string) *PDS {
	tb.Helper()
	return startPDS(tb, "devnet", n, handles...)
}

// StartPreviousPDS is StartReferencePDS with the PDS of the previous generation (0.4): it signs no audience with a
// fragment, and answers such a question with a plain 500.
func StartPreviousPDS(tb TB, handles ...string) *PDS {
	tb.Helper()
	return StartPreviousPDSWith(tb, Neighbours{}, handles...)
}

// StartPreviousPDSWith is StartPreviousPDS for a PDS with neighbours, which finds no Lexicons in a repo.
func StartPreviousPDSWith(tb TB, n Neighbours, handles ...string) *PDS {
	tb.Helper()
	return startPDS(tb, "previous", n, handles...)
}

func startPDS(tb TB, project string, n Neighbours, handles ...string) *PDS {
	tb.Helper()
	dir, err := toolbox.Packages(project)
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	var settings struct {
		PDSPort  int               `json:"pdsPort"`
		PLCPort  int               `json:"plcPort,omitempty"`
		PLCURL   string            `json:"plcUrl,omitempty"`
		Lexicons string            `json:"lexicons,omitempty"`
		Data     string            `json:"data"`
		Accounts []json.RawMessage `json:"accounts"`
	}
	settings.Accounts = []json.RawMessage{} // none is not null
	settings.PDSPort, settings.Data, settings.PLCURL, settings.Lexicons = FreePort(tb), tb.TempDir(), n.PLCURL, n.Lexicons
	if n.PLCURL == "" {
		settings.PLCPort = FreePort(tb)
	}
	for _, handle := range handles {
		settings.Accounts = append(settings.Accounts, fmt.Appendf(nil, `{"handle":%q,"password":%q}`, handle, "main-password-of-"+handle))
	}
	raw, err := json.Marshal(settings)
	if err != nil {
		tb.Fatalf("components: %v", err)
	}

	// A script from the command line finds its packages from the working directory.
	argv := []string{Path(tb, "node"), "--input-type=module", "--eval", startDevnet}
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + settings.Data}
	if len(n.Names) > 0 {
		hosts := write(tb, "hosts", []byte("127.0.0.1 localhost "+strings.Join(n.Names, " ")+"\n"))
		argv = append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}, argv...)
	}
	if len(n.CA) > 0 {
		env = append(env, "NODE_EXTRA_CA_CERTS="+write(tb, "ca.pem", n.CA))
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, env
	stdin, err := cmd.StdinPipe() // open until the end: see start.mjs
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	stdout, answer := io.Pipe()
	cmd.Stdout = answer
	tb.Cleanup(func() { _ = answer.Close() }) // never fails
	p := start(tb, "the reference PDS", cmd)
	if _, err := stdin.Write(append(raw, '\n')); err != nil {
		tb.Fatalf("components: %v\n%s", err, p.output.tail())
	}
	var pds PDS
	if err := json.Unmarshal(p.line(tb, stdout), &pds); err != nil {
		tb.Fatalf("components: the reference PDS: %v", err)
	}
	pds.Data = settings.Data
	return &pds
}

func write(tb TB, name string, content []byte) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatalf("components: %v", err)
	}
	return path
}

// line waits for the first line of a server's standard output, and keeps that from filling up after it.
func (p *process) line(tb TB, stdout io.Reader) []byte {
	tb.Helper()
	lines := make(chan []byte, 1)
	go func() {
		r := bufio.NewReader(stdout)
		line, err := r.ReadBytes('\n')
		if err == nil {
			lines <- line
		}
		_, _ = io.Copy(io.Discard, r) // nobody reads the rest
	}()
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	start := time.Now()
	select {
	case line := <-lines:
		return line
	case <-p.exited:
		tb.Fatalf("components: %s ended at start:\n%s", p.name, p.output.tail())
	case <-ctx.Done():
		tb.Fatalf("components: %s is not ready after %s:\n%s", p.name, time.Since(start).Round(time.Second), p.output.tail())
	}
	return nil
}
