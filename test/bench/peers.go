package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"atcr.io/test/components/toolbox"
)

// peer is another registry.
type peer struct {
	name    string
	durable bool // what it took outlives it
	*process
}

const (
	distribution3 = "distribution 3.1.2"
	distribution2 = "distribution 2.8.3"
)

// aboutPeers says on the page what each peer is.
const aboutPeers = `
The peers: distribution 3.1.2, the CNCF's registry, and distribution 2.8.3, the generation before it, which many still run. Neither logs
requests nor asks who it is; both cache blobs' descriptors in memory. 2.8.3 is built from its packages with a main of ours, without its health checks.
Best peer: the better of those that keep what they take. crane's registry is one for tests, with everything in memory and open to
everybody: shown, but no peer.
`

// folderPeers starts every peer that keeps its blobs in a folder.
func (b *bench) folderPeers(ctx context.Context, section string) ([]peer, error) {
	three, err := b.startDistribution(ctx, "distribution-"+section, nil)
	if err != nil {
		return nil, err
	}
	two, err := b.startDistribution2(ctx, "distribution2-"+section)
	if err != nil {
		return nil, err
	}
	return []peer{{name: distribution3, durable: true, process: three}, {name: distribution2, durable: true, process: two}}, nil
}

func (b *bench) startDistribution2(ctx context.Context, name string) (*process, error) {
	program, err := toolbox.Path("registry2")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(b.dir, name+".yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %q}\n  cache: {blobdescriptor: inmemory}\n  delete: {enabled: true}\nhttp: {addr: \"127.0.0.1:%d\"}\n",
		filepath.Join(b.dir, name), port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, name, base, base+"/v2/", nil, program, config)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// best is the largest value of a durable peer, and whose it is.
type best struct {
	name  string
	value float64
}

func (m *best) see(name string, value float64) {
	if value > m.value {
		*m = best{name, value}
	}
}

// verdict says below a table who the best peer is, and whether ours is as many times as fast as is wanted: value and
// peer in whatever is more when it is better.
func (b *bench) verdict(what string, peer best, value, wanted float64) {
	if times := value / peer.value; times < wanted {
		b.printf("\n**%s: %.2f× of %s; %.0f× is wanted.**\n", what, times, peer.name, wanted)
	} else {
		b.printf("\n%s: %.2f× of the best peer, %s; wanted: ≥%.0f×.\n", what, times, peer.name, wanted)
	}
}
