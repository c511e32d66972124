// Package lexicons has the Lexicons that records are held against: ATCR's own, all of them, and of those that
// others published the parts that a hold's repo may have.
package lexicons

import "embed"

// FS has the files by their NSID's path: io/atcr/tag.json.
//
//go:embed app com io
var FS embed.FS
