/**
 * What we use of the AWS SDK, and nothing else: a file of its own in the executable, because whatever is in
 * the main one costs every command time and memory at its start.
 */
export {
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
} from '@aws-sdk/client-s3';
export { NodeHttpHandler } from '@smithy/node-http-handler';
