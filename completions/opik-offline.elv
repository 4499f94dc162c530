
use builtin;
use str;

set edit:completion:arg-completer[opik-offline] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'opik-offline'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'opik-offline'= {
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand -V 'Print version'
            cand --version 'Print version'
            cand agent 'Run the agent: pass on, store while the server is away, deliver afterwards'
            cand healthcheck 'Check the configuration, the Opik server, access to it, the store and its disk'
            cand status 'Show the connection, the agent and what is stored'
            cand replay 'Deliver stored messages to the Opik server'
            cand inspect 'List stored messages, or show one whole'
            cand purge 'Delete stored messages for good'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'opik-offline;agent'= {
            cand --listen 'Listen on this address [default: 127.0.0.1:6745]'
            cand --allowed-hosts 'Answer to these hosts too, and take requests of web pages of these origins [default: none]'
            cand --batch-size 'Replay this many messages, then pause; unset, replay starts at 50 and speeds up while the server keeps up'
            cand --delay 'Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up'
            cand --max-size 'Let the store take this much space at most [default: 10GiB]'
            cand --free-disk-reserve 'Leave this much space on the disk; unset, a tenth of a small one [default: 256MiB]'
            cand --when-full 'When the store is full: refuse or drop_oldest [default: refuse]'
            cand --rejected-share 'When room is needed, drop the oldest rejected messages beyond this share of the store, in percent [default: 25]'
            cand --rejected-export 'Write rejected messages to this folder before they are dropped to make room, as JSON lines [default: none]'
            cand --max-age 'Drop messages that wait longer than this [default: none]'
            cand --max-attempts 'Reject a message that failed alone this many times [default: 10]'
            cand --max-body-size 'Keep no body larger than this as sent: it streams through [default: 500MiB]'
            cand --max-inflated-size 'Keep no body larger than this when decoded: it streams through [default: 512MiB]'
            cand --max-attachment-size 'Refuse files of attachments larger than this [default: 5GiB]'
            cand --max-connections 'Take this many connections of clients at once; past it the longest idle one is closed [default: 4096]'
            cand --memory-budget 'Let bodies take this much memory, of clients and of replay; unset, 256MiB, and less in a small container'
            cand --client-timeout 'Close the connection of a client that is silent for this long [default: 2m]'
            cand --client-cert-file 'Show this certificate to the server (mTLS), a PEM file'
            cand --client-key-file 'The private key of that certificate, where it is not in the same file'
            cand --upstream-headers-file 'Send the headers in this file to the server, one `Name: value` a line'
            cand --connect-timeout 'Give up connecting to the server after this long [default: 5s]'
            cand --forward-timeout 'Store a write that the server has not answered after this long [default: 1m35s]'
            cand --retry-interval 'Try a held lane again after this long: no valid key, a redirect, a server that fails at everything [default: 10s]'
            cand --shutdown-timeout 'Let requests in progress finish for this long when stopping [default: 10s]'
            cand --flush-timeout 'Deliver for this long after the command has ended [default: 30s]'
            cand --log-format 'Write log lines as text or json [default: text]'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand --insecure-listen 'Listen beyond this machine without asking for an intake token'
            cand --adopt-orphans 'Take in what killed Python processes leave, and deliver it'
            cand --rekey-refused 'Give messages whose key the server refuses (401, 403) the configured key, for the same server and workspace'
            cand --all-otlp-traces 'Lead all OTLP traces of the command to Opik, not only those that went there before'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;healthcheck'= {
            cand --wait 'Keep checking for this long until all is well'
            cand --project-name 'The project that the smoke test writes to'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand --full 'Read the store page by page even when it is large, which takes some 20 seconds a gigabyte'
            cand --smoke-test 'Write a trace with a span and an image to the server and read it back, when all else is well'
            cand --reseal 'Keep all that is stored as the settings ask for, encrypted or not, and leave nothing of before in the files; asks no server'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;status'= {
            cand --fail-if-backlog 'Exit with 4 when more than this many messages wait'
            cand --fail-if-older-than 'Exit with 4 when a message has been waiting longer than this'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand --watch 'Show it again every 2 seconds until interrupted'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;replay'= {
            cand --batch-size 'Replay this many messages, then pause'
            cand --delay 'Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up'
            cand --limit 'Stop after this many messages'
            cand --timeout 'Stop after this long, and keep trying until then'
            cand --verify-timeout 'Ask again for what the server does not show yet, until this long after the delivery'
            cand --from 'Take in what a Python process left, then deliver'
            cand --owner 'As root, take in the files of this user, a name or a number'
            cand --attachments-from 'Also send attachments whose files are below this folder'
            cand --status 'Only messages with this status (may be given more than once)'
            cand --type 'Only messages of this type, such as OtlpTraces'
            cand --workspace 'Only messages of this workspace'
            cand --server 'Only messages for this server, by the URL that `status` shows'
            cand --project 'Only messages that name this project'
            cand --id 'Only the message with this id'
            cand --trace 'Only messages about this trace or its spans'
            cand --older-than 'Only messages older than this, such as 2h or 7d'
            cand --newer-than 'Only messages accepted within this time, such as 15m'
            cand --readdress 'Deliver what was accepted for this server to --upstream instead'
            cand --lane 'With --rekey or --readdress: only this lane, by the number that a --dry-run of it shows'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand --verify 'Read back what was delivered, report what is missing'
            cand --remove-source 'Delete each file of --from, and the SDK''s temporary copies of attachments, once every message in it is stored'
            cand --dry-run 'Show what would be replayed, and send nothing'
            cand --rejected 'Only rejected messages (--status rejected)'
            cand --rekey 'Give lanes whose key the server refuses the configured key'
            cand -y 'With --rekey or --readdress: do not ask'
            cand --yes 'With --rekey or --readdress: do not ask'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;inspect'= {
            cand --from 'List what a Python process left in this file'
            cand --owner 'As root, look into a file of this user, a name or a number'
            cand --limit 'List this many messages at most; 0 lists all [default: 50]'
            cand --status 'Only messages with this status (may be given more than once)'
            cand --type 'Only messages of this type, such as OtlpTraces'
            cand --workspace 'Only messages of this workspace'
            cand --server 'Only messages for this server, by the URL that `status` shows'
            cand --project 'Only messages that name this project'
            cand --id 'Only the message with this id'
            cand --trace 'Only messages about this trace or its spans'
            cand --older-than 'Only messages older than this, such as 2h or 7d'
            cand --newer-than 'Only messages accepted within this time, such as 15m'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand --newest 'List the newest first'
            cand --follow 'Show messages as they are stored, from now on'
            cand --no-pager 'Show a long result on a terminal without a pager'
            cand --rejected 'Only rejected messages (--status rejected)'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;purge'= {
            cand --status 'Only messages with this status (may be given more than once)'
            cand --type 'Only messages of this type, such as OtlpTraces'
            cand --workspace 'Only messages of this workspace'
            cand --server 'Only messages for this server, by the URL that `status` shows'
            cand --project 'Only messages that name this project'
            cand --id 'Only the message with this id'
            cand --trace 'Only messages about this trace or its spans'
            cand --older-than 'Only messages older than this, such as 2h or 7d'
            cand --newer-than 'Only messages accepted within this time, such as 15m'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --format 'Write results in this format'
            cand --dry-run 'Show what would be deleted, and delete nothing'
            cand -y 'Delete without asking'
            cand --yes 'Delete without asking'
            cand --rejected 'Only rejected messages (--status rejected)'
            cand -q 'Say only what was asked for, and errors'
            cand --quiet 'Say only what was asked for, and errors'
            cand -v 'Say more on standard error'
            cand --verbose 'Say more on standard error'
            cand --no-color 'Use no colours, as with NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;help'= {
            cand agent 'Run the agent: pass on, store while the server is away, deliver afterwards'
            cand healthcheck 'Check the configuration, the Opik server, access to it, the store and its disk'
            cand status 'Show the connection, the agent and what is stored'
            cand replay 'Deliver stored messages to the Opik server'
            cand inspect 'List stored messages, or show one whole'
            cand purge 'Delete stored messages for good'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'opik-offline;help;agent'= {
        }
        &'opik-offline;help;healthcheck'= {
        }
        &'opik-offline;help;status'= {
        }
        &'opik-offline;help;replay'= {
        }
        &'opik-offline;help;inspect'= {
        }
        &'opik-offline;help;purge'= {
        }
        &'opik-offline;help;help'= {
        }
    ]
    $completions[$command]
}
